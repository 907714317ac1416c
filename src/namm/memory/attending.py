"""Rows at the same point attend, and their policy observes what they attend to."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from namm import kernels
from namm.kernels import Lanes, fused
from namm.memory import asking
from namm.memory.plan import Scaling
from namm.memory.queries import hold, joined
from namm.memory.sequence import Rows, lanes_of
from namm.memory.store import Part


def attend(
    rows: Rows, query: Float[Tensor, "lane group token dim"], scaling: Scaling, visible: Tensor | None
) -> Float[Tensor, "lane group token value_dim"]:
    """Attention of tokens that were appended and cross no update; they are observed if an update will come."""
    first, new = rows.first, query.shape[2]
    due = rows.plan.next_update(rows.seen) is not None
    watching = first.watches and due
    pending = rows.seen % first.hop
    full = watching and pending + new >= first.hop  # a hop, which is to be observed
    pool = rows.pool(query.shape[1]) if watching and visible is None else None
    at_once = watching and pool is None and (visible is not None or (full and new >= first.hop))  # with attention
    rehearsal = first.rehearsal if due else None
    competes = rehearsal is not None and rehearsal.competes and new > 1
    known = _fused(rows, query, scaling, visible)
    lse: Tensor | None
    if at_once or (known is None and (competes or scaling.softcap is not None)):
        parts = rows.parts(new)
        carried = _carried(rows, parts, new, first.overlap + pending, scaling) if at_once else None
        out, lse = _observed(rows, parts, query, scaling, visible, carried, full, known)
    else:
        out, lse = known or (_plain(rows.parts(new), query, scaling, visible), None)
    for one in rows.sequences:
        one.seen += new
        one.scaling = scaling
    if rehearsal is not None:
        asking.wait(rows, query, lse)
    if not watching:
        for one in rows.sequences:
            one.tail.clear()
    elif at_once and lse is not None:
        _extend(rows, query, lse, first.overlap + rows.seen % first.hop)
    else:
        looked = pool is not None
        _remember(rows, query, lse if looked else None, whole=full and looked)
        if full:
            observe_hop(rows, (pending + new) // first.hop * first.hop)
    return out


def _fused(
    rows: Rows, query: Tensor, scaling: Scaling, visible: Tensor | None
) -> tuple[Float[Tensor, "lane group token value_dim"], Float[Tensor, "lane group token"]] | None:
    """Attention and its log-sum-exp by one kernel for all lanes, where there is one."""
    lanes = rows.store.ragged(rows.at) if visible is None and scaling.softcap is None else None
    return kernels.attend_lanes(query, lanes, scaling.scale) if lanes is not None else None


def _plain(
    parts: list[Part], query: Tensor, scaling: Scaling, visible: Tensor | None
) -> Float[Tensor, "lane group token value_dim"]:
    """Attention that nobody looks at, by the fastest way there is."""
    return lanes_of(
        kernels.attend(query[part.lanes], part.keys, part.values, scaling.scale, _mask(visible, part), part.empty)
        for part in parts
    )


def _observed(
    rows: Rows,
    parts: list[Part],
    query: Tensor,
    scaling: Scaling,
    visible: Tensor | None,
    carried: list[Tensor] | None,
    observes: bool,
    known: tuple[Tensor, Tensor] | None,
) -> tuple[Float[Tensor, "lane group token value_dim"], Float[Tensor, "lane group token"]]:
    """Attention and the log-sum-exp of each query; the policy `observes` them, after those `carried` over."""
    outputs, sums = [], []
    for place, part in enumerate(parts):
        taking = rows.taking(part, part.count, rehearsal=False) if observes and carried else nullcontext()
        with taking as observe:
            out, lse = kernels.attend_and_observe(
                query[part.lanes],
                part.keys,
                part.values,
                scaling.scale,
                softcap=scaling.softcap,
                visible=_mask(visible, part),
                empty=part.empty,
                carried=carried[place] if carried else None,
                hop=rows.first.hop,
                overlap=rows.first.overlap,
                observe=observe,
                known=None if known is None else (known[0][part.lanes], known[1][part.lanes]),
            )
        outputs.append(out)
        sums.append(lse)
    return lanes_of(outputs), lanes_of(sums)


def rehearse(
    rows: Rows,
    query: Float[Tensor, "lane group token dim"],
    keys: Float[Tensor, "lane token dim"],
    values: Float[Tensor, "lane token value_dim"],
    scaling: Scaling,
) -> Float[Tensor, "lane group token value_dim"]:
    """Attention of tokens that nobody will remember; what they attend to is observed."""
    outputs = []
    for part in rows.parts(query.shape[2]):
        empty = part.empty
        observes = rows.plan.policy.channels > 0
        with rows.taking(part, part.count, rehearsal=True) if observes else nullcontext() as observe:
            out, _ = kernels.attend_and_observe(
                query[part.lanes],
                torch.cat([part.keys, keys[part.lanes]], 1),
                torch.cat([part.values, values[part.lanes]], 1),
                scaling.scale,
                softcap=scaling.softcap,
                empty=None if empty is None else torch.nn.functional.pad(empty, (0, keys.shape[1])),
                observe=observe,
            )
        outputs.append(out)
    return lanes_of(outputs)


def observe_hop(rows: Rows, new: int | None = None) -> None:
    """A hop of queries that came in small numbers is full, or `new` ones are: observe them together."""
    first = rows.first
    new = first.hop if new is None else new
    rest = rows.seen % first.hop
    query, _ = joined(rows.tails)
    if (pool := rows.pool(query.shape[1])) is not None:
        _look(rows, pool, new)
    else:
        parts, observed = rows.parts(), first.overlap + new
        for part, seen in zip(parts, _carried(rows, parts, 0, observed + rest, rows.scaling), strict=True):
            rows.observe(part, seen[:, :observed])
    query, sums = joined(rows.tails)
    gone = max(0, query.shape[2] - first.overlap - rest)
    hold(rows.tails, query[:, :, gone:].clone(), sums[:, :, gone:].clone())


def _look(rows: Rows, pool: Lanes, new: int) -> None:
    """Observe the last `new` queries that make whole hops, from their log-sum-exp, by kernels over all lanes."""
    policy, scaling = rows.plan.policy, rows.scaling
    query, lse = _known(rows, pool)
    start = rows.seen - query.shape[2]  # position of the first query
    end = query.shape[2] - rows.seen % rows.first.hop
    begin = end - new
    if reductions := policy.reductions(rehearsal=False):
        asked, sums = query[:, :, begin:end], lse[:, :, begin:end]
        fused.reduce(
            asked, sums, pool, scaling.scale, scaling.softcap, first=start + begin, reductions=reductions,
            stored=rows.stored,
        )  # fmt: skip
        return
    (part,) = rows.parts()
    hop, overlap = rows.first.hop, rows.first.overlap
    block = kernels.rows_at_once(pool, hop)
    for at in range(begin, end, block):
        stop, before = min(at + block, end), max(0, at - overlap)
        attention = fused.rows(
            query[:, :, before:stop], lse[:, :, before:stop], pool, scaling.scale, scaling.softcap,
            first=start + before, lead=overlap - (at - before),
        )  # fmt: skip
        rows.observe(part, attention)


def _known(rows: Rows, pool: Lanes) -> tuple[Float[Tensor, "lane group query dim"], Float[Tensor, "lane group query"]]:
    """The last queries and their log-sum-exp, which is found where it is not known."""
    query, lse = joined(rows.tails)
    known, scaling = lse.shape[2], rows.scaling
    if known < query.shape[2]:
        first = rows.seen - query.shape[2] + known
        later = fused.sums(query[:, :, known:], pool, scaling.scale, scaling.softcap, first=first)
        lse = torch.cat([lse, later], 2) if known else later
        hold(rows.tails, query, lse)
    return query, lse


def _remember(rows: Rows, query: Tensor, lse: Tensor | None, whole: bool) -> None:
    """Keep queries, and their log-sum-exp if it is known; copies, unless they are looked at at once as a `whole`."""
    query = query if whole or query.shape[2] == 1 else query.clone()  # it may be a view of all that was read
    tail = rows.tails[0]
    if lse is None or tail.known < tail.count:
        for place, one in enumerate(rows.tails):
            one.add(query, place)
        return
    lse = lse if whole else lse.clone()
    if tail.count:
        held, sums = joined(rows.tails)
        query, lse = torch.cat([held, query], 2), torch.cat([sums, lse], 2)
    hold(rows.tails, query, lse)


def _extend(rows: Rows, query: Tensor, lse: Tensor, length: int) -> None:
    """The last queries are these after those that are held, `length` at most."""
    if query.shape[2] < length and rows.tails[0].count:
        held, sums = joined(rows.tails)
        query, lse = torch.cat([held, query], 2), torch.cat([sums, lse], 2)
    gone = max(0, query.shape[2] - length)
    hold(rows.tails, query[:, :, gone:].clone(), lse[:, :, gone:].clone())


def _carried(
    rows: Rows, parts: list[Part], new: int, length: int, scaling: Scaling
) -> list[Float[Tensor, "lane query slot"]]:
    """Attention of the last `length` queries to the slots before the newest `new`, part by part.

    Zeros before the text began. From now on the log-sum-exp of every query in the tail is known.
    """
    carried, sums = [], []
    count, known = rows.tails[0].count, rows.tails[0].known
    query, lse = joined(rows.tails) if count else (None, None)
    for part in parts:
        keys, lanes, old = part.keys, part.lanes, part.count - new
        empty = None if part.empty is None else part.empty[:, :old]
        seen = torch.zeros(len(keys), length, old, device=keys.device)
        carried.append(seen)
        if query is None or lse is None:
            continue
        keys, seen = keys[:, :old], seen[:, length - count :]
        if known:
            asked = torch.arange(rows.seen - count, rows.seen - count + known, device=keys.device)
            visible = part.positions[:, None, :old] <= asked[:, None]
            visible = visible if empty is None else visible & ~empty[:, None]
            seen[:, :known] = kernels.replay(
                query[lanes, :, :known], lse[lanes], keys, scaling.scale, scaling.softcap, visible
            )
        if known < count:
            seen[:, known:], later = kernels.look_back(
                query[lanes, :, known:], keys, scaling.scale, scaling.softcap, empty
            )
            sums.append(torch.cat([lse[lanes], later], 2))
    if query is not None and sums:
        hold(rows.tails, query, lanes_of(sums))
    return carried


def know_tail(rows: Rows) -> None:
    """Learn the log-sum-exp of the last queries, while the slots that they saw are all there."""
    if rows.tails[0].known == (held := rows.tails[0].count):
        return
    query, _ = joined(rows.tails)
    if (pool := rows.pool(query.shape[1])) is not None:
        _known(rows, pool)
    else:
        _carried(rows, rows.parts(held), 0, held, rows.scaling)


def _mask(visible: Tensor | None, part: Part) -> Bool[Tensor, "lane token slot"] | None:
    """Which slots each token of a row may attend to, of what it may of the whole sequence."""
    if visible is None:
        return None
    shown = visible[:, part.positions.long().clamp(min=0)].transpose(0, 1)
    return shown if part.empty is None else shown & ~part.empty[:, None]
