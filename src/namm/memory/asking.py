"""Asking in place: queries look once more, at all that their layer holds, what came after them included."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from namm import kernels
from namm.kernels import Lanes, fused
from namm.memory.queries import hold, joined
from namm.memory.sequence import Rows, lanes_of


def wait(rows: Rows, query: Float[Tensor, "lane group token dim"], lse: Tensor | None) -> None:
    """Keep queries until their window is full, counted from the last update, and then let them ask."""
    rehearsal = rows.first.rehearsal
    assert rehearsal is not None
    looked = query.new_empty(*query.shape[:2], 0, dtype=torch.float32)
    if rows.first.asking.count:
        held, looked = joined(rows.asking)
        if lse is not None and rehearsal.competes:
            looked = torch.cat([_looked_back(rows, held, looked, query.shape[2]), lse], 2)
        query = torch.cat([held, query], 2)
    elif lse is not None and rehearsal.competes:
        looked = lse
    while (count := query.shape[2]) >= rehearsal.window:
        query, looked = _ask(rows, query, looked, min(count, rehearsal.window))
    hold(rows.asking, query.clone(), looked.clone())  # a view of what was read would keep all of it


def ask_window(rows: Rows) -> None:
    """Let the held queries ask whose window is full."""
    rehearsal = rows.first.rehearsal
    assert rehearsal is not None
    query, looked = _ask(rows, *joined(rows.asking), rehearsal.window)
    hold(rows.asking, query.clone(), looked.clone())


def ask_rest(rows: Rows) -> None:
    """Let the held queries ask before their window is full, since an update is due."""
    if rows.first.rehearsal is not None and rows.first.asking.count:
        _ask(rows, *joined(rows.asking), rows.first.asking.count)
    for held in rows.asking:
        held.clear()


def _ask(rows: Rows, query: Tensor, looked: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Show the tokens that are asked to the policy as the first `count` queries attend to them.

    The queries are those of the newest tokens, which every head holds. Returns the other queries, and what is known of
    their log-sum-exp.
    """
    rehearsal, scaling = rows.first.rehearsal, rows.scaling
    assert rehearsal is not None
    first, turns = query[:, :, :count], scaling.rotation if rehearsal.rotated else None
    if rehearsal.competes:
        looked = _looked_back(rows, query, looked, 0)
    later = query.shape[2] - count
    newest = query.shape[2] if rehearsal.asked == "window" else None
    if (pool := rows.pool(query.shape[1])) is not None:
        if turns is not None and len(turns.frequencies):
            first = fused.turn(first, turns.on(first.device), rehearsal.window, turns.interleaved)
        _ask_lanes(rows, pool, first, looked[:, :, :count] if rehearsal.competes else None, newest, later)
        return query[:, :, count:], looked[:, :, count:]
    moved = first if turns is None else turns.move(first, rehearsal.window)
    for part in rows.parts(count):
        asked = part.cut(0 if newest is None else part.count - newest, part.count - later)
        with rows.taking(asked, asked.count, rehearsal=True) as observe:
            kernels.ask(
                moved[part.lanes],
                asked.keys,
                scaling.scale,
                scaling.softcap,
                observe,
                looked[part.lanes, :, :count] if rehearsal.competes else None,
                asked.empty if newest is None else None,
            )
    return query[:, :, count:], looked[:, :, count:]


def _ask_lanes(rows: Rows, pool: Lanes, query: Tensor, rival: Tensor | None, newest: int | None, later: int) -> None:
    """The same by kernels over all lanes; of all or the `newest` slots of each, the `later` newest are not asked."""
    policy, scaling = rows.plan.policy, rows.scaling
    scale, softcap = scaling.scale, scaling.softcap
    lse = fused.sums(query, pool, scale, softcap, first=None, newest=newest, later=later, rival=rival)
    if reductions := policy.reductions(rehearsal=True):
        fused.reduce(
            query, lse, pool, scale, softcap, first=None, newest=newest, later=later, reductions=reductions,
            stored=rows.stored,
        )  # fmt: skip
        return
    (part,) = rows.parts(query.shape[2])
    asked = part.cut(0 if newest is None else part.count - newest, part.count - later)
    block = kernels.rows_at_once(pool, 1)
    for start in range(0, query.shape[2], block):
        here = slice(start, start + block)
        attention = fused.rows(
            query[:, :, here], lse[:, :, here], pool, scale, softcap, first=None, newest=newest, later=later
        )
        rows.rehearse(asked, asked.count, attention)


def _looked_back(rows: Rows, query: Tensor, known: Tensor, new: int) -> Float[Tensor, "lane group query"]:
    """The log-sum-exp of held queries, before `new` tokens that came after them; those of single ones are found."""
    if known.shape[2] == query.shape[2]:
        return known
    scaling = rows.scaling
    if not new and (pool := rows.pool(query.shape[1])) is not None:
        asked, first = query[:, :, known.shape[2] :], rows.seen - query.shape[2] + known.shape[2]
        sums = fused.sums(asked, pool, scaling.scale, scaling.softcap, first=first)
        return torch.cat([known, sums], 2) if known.shape[2] else sums
    found = []
    for part in rows.parts(query.shape[2]):
        old = part.count - new
        empty = None if part.empty is None else part.empty[:, :old]
        asked = query[part.lanes, :, known.shape[2] :]
        found.append(kernels.look_back(asked, part.keys[:, :old], scaling.scale, scaling.softcap, empty)[1])
    return torch.cat([known, lanes_of(found)], 2)
