"""The rows of a call read their tokens in steps, each row up to its next update.

Rows that read equally many tokens in a step store them in one go; those at the same point attend and observe in one go,
and single tokens attend in one go wherever their rows are.
"""

from __future__ import annotations

from collections.abc import Sequence as Several

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from namm import kernels
from namm.errors import ModelError
from namm.memory import attending
from namm.memory.asking import ask_window
from namm.memory.plan import Scaling
from namm.memory.sequence import Rows, Sequence, at_one_point, begin
from namm.memory.updates import update


def read(
    sequences: Several[Sequence],
    query: Float[Tensor, "batch head token dim"],
    keys: Float[Tensor, "batch kv_head token dim"],
    values: Float[Tensor, "batch kv_head token value_dim"],
    scaling: Scaling,
    columns: list[Int[Tensor, " _"]] | None = None,
    visible: list[Bool[Tensor, "_ column"]] | None = None,
) -> Float[Tensor, "batch token head value_dim"]:
    """Attention output for new tokens, which are remembered; rows forget whenever an update falls due.

    Where others have a say, one that falls due at the end of these tokens is left to them. Where all layers decide
    together, so is one that falls due before it.

    Args:
        columns: the columns that are tokens of each row, ascending; the others are padding, and their output is 0.
        visible: which tokens of the whole sequence each new token may attend to, in place of causality.
    """
    if not sequences[0].begun:
        begin(sequences, keys, values)
    batch, heads, tokens, _ = query.shape
    lengths = [tokens] * batch if columns is None else [len(real) for real in columns]
    done = [0] * batch
    out: Tensor | None = None
    while left := [row for row in range(batch) if done[row] < lengths[row]]:
        stops = {row: _stop(sequences[row], done[row], lengths[row]) for row in left}
        for alike in _by_length(left, done, stops):
            starts = [done[row] for row in alike]
            new = stops[alike[0]] - starts[0]
            rows = [sequences[row] for row in alike]
            shown = None if visible is None else [visible[row][done[row] : stops[row]] for row in alike]
            q, k, v = (_taken(t, alike, starts, new, columns) for t in (query, keys, values))
            dues = [one.plan.next_update(one.seen) for one in rows]
            mixed = _step(rows, q, k, v, scaling, shown).transpose(1, 2)
            whole = len(alike) == batch and new == tokens
            if whole:
                out = mixed.to(query.dtype)
            else:
                out = query.new_zeros(batch, tokens, heads, values.shape[-1]) if out is None else out
                for place, row in enumerate(alike):
                    here = slice(starts[place], starts[place] + new)
                    out[row, here if columns is None else columns[row][here]] = mixed[place].to(out.dtype)
            for row in alike:
                done[row] = stops[row]
            ripe = [
                one for row, one, due in zip(alike, rows, dues, strict=True)
                if one.seen == due and not one.plan.jointly and not (one.plan.in_pieces and stops[row] == lengths[row])
            ]  # fmt: skip
            if ripe:
                update(ripe)
    return query.new_zeros(batch, tokens, heads, values.shape[-1]) if out is None else out


def _stop(one: Sequence, start: int, tokens: int) -> int:
    """Where the next step of a row ends."""
    due = None if one.plan.jointly else one.plan.next_update(one.seen)
    return tokens if due is None else min(tokens, start + due - one.seen)


def _by_length(rows: list[int], done: list[int], stops: dict[int, int]) -> list[list[int]]:
    """Rows whose next steps are equally long."""
    groups: dict[int, list[int]] = {}
    for row in rows:
        groups.setdefault(stops[row] - done[row], []).append(row)
    return list(groups.values())


def _taken(
    given: Float[Tensor, "batch any_head token dim"], rows: list[int], starts: list[int], new: int,
    columns: list[Tensor] | None,
) -> Float[Tensor, "row any_head new dim"]:  # fmt: skip
    """So many tokens of these rows."""
    if columns is None and len(rows) == len(given) and len(set(starts)) == 1:
        return given if new == given.shape[2] else given[:, :, starts[0] : starts[0] + new]
    parts = [
        given[row][:, start : start + new] if columns is None else given[row][:, columns[row][start : start + new]]
        for row, start in zip(rows, starts, strict=True)
    ]
    return parts[0][None] if len(parts) == 1 else torch.stack(parts)


def _step(
    rows: list[Sequence], query: Tensor, keys: Tensor, values: Tensor, scaling: Scaling, visible: list[Tensor] | None
) -> Float[Tensor, "row head token value_dim"]:
    """Attention output for as many new tokens of each row, which cross no update."""
    kv_heads, new = keys.shape[1:3]
    stores = at_one_point(rows, lambda one: id(one.store))
    for places in stores:
        grown = [rows[place] for place in places]
        k, v = (t if len(places) == len(rows) else t[places] for t in (keys, values))
        if grown[0].store.append([one.at for one in grown], k, v, [one.seen for one in grown]):
            for one in grown:
                one.note()
    lanes = query.unflatten(1, (kv_heads, -1)).flatten(0, 1)
    hops = all(one.hop > 1 or not one.watches for one in rows)
    if new == 1 and visible is None and scaling.softcap is None and hops:
        out = _single(rows, stores, lanes, scaling)
        return out.unflatten(0, (len(rows), kv_heads)).flatten(1, 2)
    points = at_one_point(rows, lambda one: one.point if visible is None else id(one))
    outputs: dict[int, Tensor] = {}
    by_row = lanes.unflatten(0, (len(rows), kv_heads))
    for alike in points:
        mine = lanes if len(alike) == len(rows) else by_row[alike].flatten(0, 1)
        shown = None if visible is None else visible[alike[0]]
        if shown is not None and bool(shown[:, (end := rows[alike[0]].seen + new) :].any()):
            raise ModelError(
                "tokens that see no further than the next update", f"one that looks past token {end}",
                "Choose an update_interval that does not cut through an image whose tokens see each other.",
            )  # fmt: skip
        out = attending.attend(Rows([rows[place] for place in alike]), mine, scaling, shown)
        out = out.unflatten(0, (len(alike), kv_heads)).flatten(1, 2)
        if len(alike) == len(rows):
            return out
        outputs |= dict(zip(alike, out, strict=True))
    return torch.stack([outputs[place] for place in range(len(rows))])


def _single(
    rows: list[Sequence], stores: list[list[int]], query: Float[Tensor, "lane group 1 dim"], scaling: Scaling
) -> Float[Tensor, "lane group 1 value_dim"]:
    """Attention of one token of each row that nobody looks at yet, all lanes in one go."""
    order = [place for places in stores for place in places]
    heads = rows[0].store.heads
    pools = [rows[places[0]].store.ragged([rows[place].at for place in places]) for places in stores]
    if order == list(range(len(rows))):
        out = kernels.attend_one(query.squeeze(2), pools, scaling.scale)
    else:
        mine = query.squeeze(2).unflatten(0, (len(rows), heads))
        mixed = kernels.attend_one(mine[order].flatten(0, 1), pools, scaling.scale).unflatten(0, (len(rows), heads))
        out = mixed[sorted(range(len(rows)), key=order.__getitem__)].flatten(0, 1)
    full = [one for place, one in enumerate(rows) if one.add(query, place, scaling)]
    for places in at_one_point(full, lambda one: one.point):
        alike = Rows([full[place] for place in places])
        if alike.first.full_window:
            ask_window(alike)
        if alike.first.full_hop:
            attending.observe_hop(alike)
    return out.unsqueeze(2)
