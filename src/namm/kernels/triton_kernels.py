"""Triton kernels over ragged lanes; `fused.py` says what each computes, and launches them.

A program has one lane and a block of its slots, or of its queries. Rows of a block of queries are queries times the
query heads of their group, filled up to a power of two (`PADDED`), so that the mean over a group is a reshape and a
sum. What is not equal to itself is not a number.
"""

from __future__ import annotations

import triton
import triton.language as tl

NOTHING = tl.constexpr(float("-inf"))


@triton.jit
def _capped(logits, softcap, CAPPED: tl.constexpr):
    """softcap * tanh(logits / softcap), in terms of what every version of Triton has."""
    if CAPPED:
        logits = softcap * (2 * tl.sigmoid(2 * logits / softcap) - 1)
    return logits


@triton.jit
def _queries(QUERY, lane, step, q_lane, q_group, q_token, tokens, GROUP, PADDED, QUERIES, DIM, WIDE):
    """A block of queries `[QUERIES * PADDED, WIDE]`, which they are, and which of these rows are there."""
    row = tl.arange(0, QUERIES * PADDED)
    token, member, d = step * QUERIES + row // PADDED, row % PADDED, tl.arange(0, WIDE)
    there = (member < GROUP) & (token < tokens)
    at = QUERY + lane * q_lane + member[:, None] * q_group + token[:, None].to(tl.int64) * q_token + d[None, :]
    return tl.load(at, mask=there[:, None] & (d < DIM)[None, :], other=0.0), token, member, there


@triton.jit
def _lane(STARTS, COUNTS, lane, newest, later):
    """Where the `newest` slots of a lane begin, and how many they are without the `later` newest."""
    start, count = tl.load(STARTS + lane).to(tl.int64), tl.load(COUNTS + lane)
    skipped = tl.maximum(count - newest, 0)
    return start + skipped, count - skipped - later


@triton.jit(do_not_specialize=["first", "newest", "later", "tokens"])
def sums(
    QUERY, KEYS, POSITIONS, STARTS, COUNTS, RIVAL, OUT, scale, softcap, first, newest, later, tokens,
    q_lane, q_group, q_token, r_lane, r_group, r_token,
    GROUP: tl.constexpr, PADDED: tl.constexpr, QUERIES: tl.constexpr, DIM: tl.constexpr, WIDE: tl.constexpr,
    SLOTS: tl.constexpr, CAUSAL: tl.constexpr, CAPPED: tl.constexpr, COMPETES: tl.constexpr,
):  # fmt: skip
    lane = tl.program_id(0).to(tl.int64)
    q, token, member, there = _queries(
        QUERY, lane, tl.program_id(1), q_lane, q_group, q_token, tokens, GROUP, PADDED, QUERIES, DIM, WIDE
    )
    start, count = _lane(STARTS, COUNTS, lane, newest, later)
    d = tl.arange(0, WIDE)
    top = tl.full((QUERIES * PADDED,), NOTHING, tl.float32)
    total = tl.zeros((QUERIES * PADDED,), tl.float32)
    for begin in range(0, count, SLOTS):
        slot = begin + tl.arange(0, SLOTS)
        held = slot < count
        at = KEYS + (start + slot)[None, :] * DIM + d[:, None]
        k = tl.load(at, mask=held[None, :] & (d < DIM)[:, None], other=0.0)
        logits = _capped(tl.dot(q.to(k.dtype), k, input_precision="tf32x3") * scale, softcap, CAPPED)
        seen = held[None, :]
        if CAUSAL:
            position = tl.load(POSITIONS + start + slot, mask=held, other=0)
            seen = seen & (position[None, :] <= first + token[:, None])
        logits = tl.where(seen, logits, NOTHING)
        higher = tl.maximum(top, tl.max(logits, axis=1))
        level = tl.where(higher == NOTHING, 0.0, higher)
        total = total * tl.exp(top - level) + tl.sum(tl.exp(logits - level[:, None]), axis=1)
        top = higher
    lse = top + tl.log(total)
    if COMPETES:
        at = RIVAL + lane * r_lane + member * r_group + token * r_token
        rival = tl.load(at, mask=there, other=0.0)
        higher = tl.maximum(lse, rival)
        lse = higher + tl.log(1 + tl.exp(-tl.abs(lse - rival)))
    tl.store(OUT + (lane * GROUP + member) * tokens + token, lse, mask=there)


@triton.jit
def _means(
    QUERY, LSE, k, lane, step, position, held, scale, softcap, first, tokens,
    q_lane, q_group, q_token, l_lane, l_group, l_token,
    GROUP: tl.constexpr, PADDED: tl.constexpr, QUERIES: tl.constexpr, DIM: tl.constexpr, WIDE: tl.constexpr,
    SLOTS: tl.constexpr, CAUSAL: tl.constexpr, CAPPED: tl.constexpr,
):  # fmt: skip
    """Attention of a block of queries to a block of slots, mean over the group: `[QUERIES, SLOTS]`."""
    q, token, member, there = _queries(
        QUERY, lane, step, q_lane, q_group, q_token, tokens, GROUP, PADDED, QUERIES, DIM, WIDE
    )
    lse = tl.load(LSE + lane * l_lane + member * l_group + token * l_token, mask=there, other=float("inf"))
    logits = _capped(tl.dot(q.to(k.dtype), k, input_precision="tf32x3") * scale, softcap, CAPPED)
    seen = there[:, None] & held[None, :]
    if CAUSAL:
        seen = seen & (position[None, :] <= first + token[:, None])
    attention = tl.where(seen, tl.exp(logits - lse[:, None]), 0.0)
    return tl.sum(tl.reshape(attention, (QUERIES, PADDED, SLOTS)), axis=1) / GROUP


@triton.jit(do_not_specialize=["first", "newest", "later", "tokens", "pool"])
def reduce(
    QUERY, LSE, KEYS, POSITIONS, STARTS, COUNTS, STATE, scale, softcap, first, newest, later, tokens, pool, stored,
    faint,
    q_lane, q_group, q_token, l_lane, l_group, l_token,
    CHANNELS: tl.constexpr, SUMS: tl.constexpr, PEAKS: tl.constexpr, LOGS: tl.constexpr,
    GROUP: tl.constexpr, PADDED: tl.constexpr, QUERIES: tl.constexpr, DIM: tl.constexpr, WIDE: tl.constexpr,
    SLOTS: tl.constexpr, CAUSAL: tl.constexpr, CAPPED: tl.constexpr,
):  # fmt: skip
    lane = tl.program_id(0).to(tl.int64)
    start, count = _lane(STARTS, COUNTS, lane, newest, later)
    if tl.program_id(1) * SLOTS < count:
        slot = tl.program_id(1) * SLOTS + tl.arange(0, SLOTS)
        held, d = slot < count, tl.arange(0, WIDE)
        at = KEYS + (start + slot)[None, :] * DIM + d[:, None]
        k = tl.load(at, mask=held[None, :] & (d < DIM)[:, None], other=0.0)
        position = tl.load(POSITIONS + start + slot, mask=held, other=0)
        total, peak = tl.zeros((SLOTS,), tl.float32), tl.zeros((SLOTS,), tl.float32)
        for step in range(0, tl.cdiv(tokens, QUERIES)):
            mean = _means(
                QUERY, LSE, k, lane, step, position, held, scale, softcap, first, tokens,
                q_lane, q_group, q_token, l_lane, l_group, l_token,
                GROUP, PADDED, QUERIES, DIM, WIDE, SLOTS, CAUSAL, CAPPED,
            )  # fmt: skip
            total += tl.sum(mean, axis=0)
            peak = tl.maximum(peak, tl.max(mean, axis=0))
        peak = tl.where(total == total, peak, total)  # noqa: PLR0124 (what is not a number stays visible)
        for channel in tl.static_range(CHANNELS):
            at = STATE + channel * pool + start + slot
            if (SUMS >> channel) & 1:
                value = tl.load(at, mask=held, other=0.0).to(tl.float32) / stored
                if (LOGS >> channel) & 1:
                    value = tl.log(1 + (tl.exp(value) - 1) + total / faint)
                else:
                    value += total
                tl.store(at, (value * stored).to(STATE.dtype.element_ty), mask=held)
            if (PEAKS >> channel) & 1:
                value = tl.load(at, mask=held, other=0.0).to(tl.float32) / stored
                largest = peak
                if (LOGS >> channel) & 1:
                    largest = tl.log(1 + peak / faint)
                value = tl.maximum(value, largest, propagate_nan=tl.PropagateNan.ALL)
                tl.store(at, (value * stored).to(STATE.dtype.element_ty), mask=held)


@triton.jit(do_not_specialize=["first", "newest", "later", "tokens", "lead", "width"])
def rows(
    QUERY, LSE, KEYS, POSITIONS, STARTS, COUNTS, OUT, scale, softcap, first, newest, later, tokens, lead, width,
    q_lane, q_group, q_token, l_lane, l_group, l_token,
    GROUP: tl.constexpr, PADDED: tl.constexpr, QUERIES: tl.constexpr, DIM: tl.constexpr, WIDE: tl.constexpr,
    SLOTS: tl.constexpr, CAUSAL: tl.constexpr, CAPPED: tl.constexpr,
):  # fmt: skip
    lane = tl.program_id(0).to(tl.int64)
    start, count = _lane(STARTS, COUNTS, lane, newest, later)
    column, d = tl.program_id(1) * SLOTS + tl.arange(0, SLOTS), tl.arange(0, WIDE)
    slot = column - (width - count)
    held = (slot >= 0) & (column < width)
    at = KEYS + (start + slot)[None, :] * DIM + d[:, None]
    k = tl.load(at, mask=held[None, :] & (d < DIM)[:, None], other=0.0)
    position = tl.load(POSITIONS + start + slot, mask=held, other=0)
    for step in range(0, tl.cdiv(tokens, QUERIES)):
        mean = _means(
            QUERY, LSE, k, lane, step, position, held, scale, softcap, first, tokens,
            q_lane, q_group, q_token, l_lane, l_group, l_token,
            GROUP, PADDED, QUERIES, DIM, WIDE, SLOTS, CAUSAL, CAPPED,
        )  # fmt: skip
        token = step * QUERIES + tl.arange(0, QUERIES)
        out = OUT + (lane * (lead + tokens) + lead + token)[:, None] * width + column[None, :]
        tl.store(out, mean, mask=(token < tokens)[:, None] & (column < width)[None, :])
    for row in range(0, lead):
        tl.store(OUT + (lane * (lead + tokens) + row) * width + column, 0.0, mask=column < width)


@triton.jit(do_not_specialize=["positions", "tokens"])
def turn(
    QUERY, FREQUENCIES, OUT, positions, group, tokens, q_lane, q_group, q_token,
    PAIRS: tl.constexpr, INTERLEAVED: tl.constexpr, DIM: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    lane = tl.program_id(0).to(tl.int64)
    row, d = tl.program_id(1) * ROWS + tl.arange(0, ROWS), tl.arange(0, WIDE)
    turned = d < 2 * PAIRS
    if INTERLEAVED:
        pair, other, sign = d // 2, d + 1 - 2 * (d % 2), 2 * (d % 2) - 1
    else:
        pair, other, sign = d % PAIRS, tl.where(d < PAIRS, d + PAIRS, d - PAIRS), tl.where(d < PAIRS, -1, 1)
    there = (row < group * tokens)[:, None]
    at = QUERY + lane * q_lane + (row // tokens * q_group + row % tokens * q_token)[:, None]
    value = tl.load(at + d[None, :], mask=there & (d < DIM)[None, :], other=0.0).to(tl.float32)
    beside = tl.load(at + other[None, :], mask=there & turned[None, :], other=0.0).to(tl.float32)
    angle = tl.load(FREQUENCIES + pair, mask=turned, other=0.0) * positions
    value = value * tl.cos(angle)[None, :] + beside * (sign * tl.sin(angle))[None, :]
    out = OUT + (lane * group * tokens + row)[:, None] * DIM + d[None, :]
    tl.store(out, value.to(OUT.dtype.element_ty), mask=there & (d < DIM)[None, :])


@triton.jit(do_not_specialize=["width", "pool"])
def gather(
    KEYS, POSITIONS, STATE, STARTS, COUNTS, KEYS_OUT, POSITIONS_OUT, STATE_OUT, EMPTY, width, pool, stored,
    CHANNELS: tl.constexpr, DIM: tl.constexpr, WIDE: tl.constexpr, SLOTS: tl.constexpr, COPIES: tl.constexpr,
):  # fmt: skip
    lane = tl.program_id(0).to(tl.int64)
    start, count = tl.load(STARTS + lane).to(tl.int64), tl.load(COUNTS + lane)
    column = tl.program_id(1) * SLOTS + tl.arange(0, SLOTS)
    slot, there = column - (width - count), column < width
    held, place = (slot >= 0) & there, lane * width + column
    tl.store(POSITIONS_OUT + place, tl.load(POSITIONS + start + slot, mask=held, other=-1), mask=there)
    tl.store(EMPTY + place, (slot < 0).to(tl.uint8), mask=there)
    for channel in tl.static_range(CHANNELS):
        value = tl.load(STATE + channel * pool + start + slot, mask=held, other=0.0).to(tl.float32) / stored
        tl.store(STATE_OUT + (lane * CHANNELS + channel) * width + column, value, mask=there)
    if COPIES:
        d = tl.arange(0, WIDE)
        fits = (d < DIM)[None, :]
        k = tl.load(KEYS + (start + slot)[:, None] * DIM + d[None, :], mask=held[:, None] & fits, other=0.0)
        tl.store(KEYS_OUT + place[:, None] * DIM + d[None, :], k, mask=there[:, None] & fits)


@triton.jit(do_not_specialize=["heads", "width"])
def bend(
    ATTENTION, PLACES, BENDS, LEVELS, OUT, heads, width, a_row, a_head, HINGES: tl.constexpr, SLOTS: tl.constexpr
):  # fmt: skip
    lane = tl.program_id(0).to(tl.int64)
    head, slot = lane % heads, tl.program_id(1) * SLOTS + tl.arange(0, SLOTS)
    there = slot < width
    x = tl.log(tl.load(ATTENTION + lane // heads * a_row + head * a_head + slot, mask=there, other=1.0))
    y = tl.zeros((SLOTS,), tl.float32)
    for hinge in tl.static_range(HINGES):
        beyond = x - tl.load(PLACES + head * HINGES + hinge)
        y += tl.load(BENDS + head * HINGES + hinge) * tl.maximum(beyond, 0.0, propagate_nan=tl.PropagateNan.ALL)
    tl.store(OUT + lane * width + slot, tl.exp(y + tl.load(LEVELS + head)), mask=there)


@triton.jit(do_not_specialize=["lanes", "width"])
def tally(KEPT, SCORES, COUNTS, OUT, lanes, width, SLOTS: tl.constexpr):
    lane = tl.program_id(0).to(tl.int64)
    count = tl.load(COUNTS + lane)
    kept, strange = tl.zeros((SLOTS,), tl.int32), tl.zeros((SLOTS,), tl.int32)
    for begin in range(0, width, SLOTS):
        column = begin + tl.arange(0, SLOTS)
        held = (column < width) & (column >= width - count)
        kept += tl.load(KEPT + lane * width + column, mask=held, other=0).to(tl.int32)
        score = tl.load(SCORES + lane * width + column, mask=held, other=0.0)
        strange = tl.maximum(strange, (score != score).to(tl.int32))  # noqa: PLR0124
    tl.store(OUT + lane, tl.sum(kept, axis=0))
    tl.store(OUT + lanes + lane, tl.max(strange, axis=0))


@triton.jit
def _moved(POOL, OUT, source, target, there, DIM: tl.constexpr, WIDE: tl.constexpr):
    """Copy rows of a pool to other places."""
    d = tl.arange(0, WIDE)
    mask = there[:, None] & (d < DIM)[None, :]
    value = tl.load(POOL + source[:, None] * DIM + d[None, :], mask=mask, other=0.0)
    tl.store(OUT + target[:, None] * DIM + d[None, :], value, mask=mask)


@triton.jit(do_not_specialize=["lanes", "width", "pool", "total"])
def compact(
    KEYS, VALUES, POSITIONS, STATE, STARTS, COUNTS, MINE, TALLY, KEPT, KEYS_OUT, VALUES_OUT, POSITIONS_OUT, STATE_OUT,
    lanes, width, pool, total,
    ALL: tl.constexpr, CHANNELS: tl.constexpr, DIM: tl.constexpr, WIDE: tl.constexpr, VALUE_DIM: tl.constexpr,
    VALUE_WIDE: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    lane, block = tl.program_id(0), tl.program_id(1)
    others = tl.arange(0, ALL)
    before = others < lane
    mine = tl.load(MINE + others, mask=before, other=-1)
    stay = tl.load(TALLY + mine, mask=before & (mine >= 0), other=0)
    stay += tl.load(COUNTS + others, mask=before & (mine < 0), other=0)
    offset = tl.sum(stay, axis=0).to(tl.int64)
    if lane == lanes:  # the spare slot, and what is left over
        for begin in range(offset + block * SLOTS, total, tl.num_programs(1) * SLOTS):
            target = begin + tl.arange(0, SLOTS).to(tl.int64)
            there = target < total
            tl.store(POSITIONS_OUT + target, -1, mask=there)
            for channel in tl.static_range(CHANNELS):
                tl.store(STATE_OUT + channel * total + target, 0.0, mask=there)
            d = tl.arange(0, WIDE)
            tl.store(KEYS_OUT + target[:, None] * DIM + d[None, :], 0.0, mask=there[:, None] & (d < DIM)[None, :])
            d = tl.arange(0, VALUE_WIDE)
            fits = there[:, None] & (d < VALUE_DIM)[None, :]
            tl.store(VALUES_OUT + target[:, None] * VALUE_DIM + d[None, :], 0.0, mask=fits)
    else:
        start, count, row = tl.load(STARTS + lane).to(tl.int64), tl.load(COUNTS + lane), tl.load(MINE + lane)
        missing = tl.where(row < 0, 0, width - count)  # columns of the mask that are no slots
        marks = KEPT + row.to(tl.int64) * width + missing
        marked = tl.where(row < 0, 0, count)  # slots that the mask decides about
        if block * SLOTS < count:
            older = tl.zeros((SLOTS,), tl.int32)
            for begin in range(0, block * SLOTS, SLOTS):
                slot = begin + tl.arange(0, SLOTS)
                older += tl.where(row < 0, 1, tl.load(marks + slot, mask=slot < marked, other=0).to(tl.int32))
            slot = block * SLOTS + tl.arange(0, SLOTS)
            held = slot < count
            kept = tl.where(row < 0, 1, tl.load(marks + slot, mask=slot < marked, other=0).to(tl.int32))
            kept = tl.where(held, kept, 0)
            target, source = offset + tl.sum(older, axis=0) + tl.cumsum(kept, axis=0) - 1, start + slot
            there = kept > 0
            _moved(KEYS, KEYS_OUT, source, target, there, DIM, WIDE)
            _moved(VALUES, VALUES_OUT, source, target, there, VALUE_DIM, VALUE_WIDE)
            tl.store(POSITIONS_OUT + target, tl.load(POSITIONS + source, mask=there, other=0), mask=there)
            for channel in tl.static_range(CHANNELS):
                value = tl.load(STATE + channel * pool + source, mask=there, other=0.0)
                tl.store(STATE_OUT + channel * total + target, value, mask=there)


@triton.jit
def _joined(POOL, NEW, OUT, source, target, fresh, old, new, there, n_token, DIM: tl.constexpr, WIDE: tl.constexpr):
    """Rows of a pool, then new ones, then zeros."""
    d = tl.arange(0, WIDE)
    fits = (d < DIM)[None, :]
    held = tl.load(POOL + source[:, None] * DIM + d[None, :], mask=old[:, None] & fits, other=0.0)
    came = tl.load(NEW + fresh[:, None] * n_token + d[None, :], mask=new[:, None] & fits, other=0.0)
    tl.store(OUT + target[:, None] * DIM + d[None, :], tl.where(old[:, None], held, came), mask=there[:, None] & fits)


@triton.jit(do_not_specialize=["lanes", "new", "pool", "total"])
def grow(
    KEYS, VALUES, POSITIONS, STATE, NEW_KEYS, NEW_VALUES, TABLE, KEYS_OUT, VALUES_OUT, POSITIONS_OUT, STATE_OUT,
    lanes, heads, new, pool, total, k_row, k_head, k_token, v_row, v_head, v_token,
    CHANNELS: tl.constexpr, DIM: tl.constexpr, WIDE: tl.constexpr, VALUE_DIM: tl.constexpr,
    VALUE_WIDE: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    lane = tl.program_id(0)
    line = TABLE + lane
    start, count, begin, room, row, seen = (
        tl.load(line), tl.load(line + lanes + 1), tl.load(line + 2 * (lanes + 1)), tl.load(line + 3 * (lanes + 1)),
        tl.load(line + 4 * (lanes + 1)), tl.load(line + 5 * (lanes + 1)),
    )  # fmt: skip
    if tl.program_id(1) * SLOTS < room:
        slot = tl.program_id(1) * SLOTS + tl.arange(0, SLOTS)
        there, old = slot < room, slot < count
        fresh = (slot >= count) & (slot < tl.where(row < 0, 0, count + new))
        source, target = start.to(tl.int64) + slot, begin.to(tl.int64) + slot
        token, head = (slot - count).to(tl.int64), lane % heads
        mine = tl.maximum(row, 0).to(tl.int64)
        _joined(
            KEYS, NEW_KEYS + mine * k_row + head * k_head, KEYS_OUT, source, target, token, old, fresh, there, k_token,
            DIM, WIDE,
        )  # fmt: skip
        _joined(
            VALUES, NEW_VALUES + mine * v_row + head * v_head, VALUES_OUT, source, target, token, old, fresh, there,
            v_token, VALUE_DIM, VALUE_WIDE,
        )  # fmt: skip
        position = tl.load(POSITIONS + source, mask=old, other=0)
        position = tl.where(old, position, tl.where(lane == lanes, -1, seen + slot - count))
        tl.store(POSITIONS_OUT + target, position, mask=there)
        for channel in tl.static_range(CHANNELS):
            value = tl.load(STATE + channel * pool + source, mask=old, other=0.0)
            tl.store(STATE_OUT + channel * total + target, value, mask=there)
