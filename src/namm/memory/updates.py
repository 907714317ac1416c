"""Updates: rows at the same point score their slots, select, and keep only what was selected."""

from __future__ import annotations

from collections.abc import Sequence as Several
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from namm.errors import ScoreError
from namm.kernels import fused
from namm.memory.asking import ask_rest
from namm.memory.attending import know_tail
from namm.memory.later import sent
from namm.memory.queries import hold, joined
from namm.memory.sequence import Rows, Sequence, at_one_point
from namm.memory.store import Part
from namm.policies.base import View
from namm.selection import Budget, Threshold


@dataclass(frozen=True)
class Scored:
    """What rows hold and how it was scored, right-aligned: -1, and nothing to go by, where a head has no slot."""

    rows: Rows
    positions: Int[Tensor, "batch kv_head slot"]
    scores: Float[Tensor, "batch kv_head slot"]


def update(sequences: Several[Sequence]) -> None:
    """Rows of one layer forget, each by its own plan; those at the same point in one go."""
    for places in at_one_point(sequences, lambda one: (id(one.store), id(one.plan), one.point)):
        rows = Rows([sequences[place] for place in places])
        held, selection = _scored(rows), rows.plan.selection
        assert selection is not None
        _keep([held], [selection.select(held.scores, held.positions, rows.seen)])


def update_together(layers: Several[Several[Sequence]]) -> None:
    """One selection for the same rows of all layers, of which each keeps its part."""
    for places in at_one_point(layers[-1], lambda one: (id(one.store), id(one.plan), one.point)):
        held = [_scored(Rows([sequences[place] for place in places])) for sequences in layers]
        plan, width = held[-1].rows.plan, max(one.scores.shape[2] for one in held)
        device = held[-1].scores.device
        scores, positions = (
            torch.cat([_wider(tensor.to(device), width, fill) for tensor in tensors], 1)
            for tensors, fill in (([one.scores for one in held], -torch.inf), ([one.positions for one in held], -1))
        )
        assert plan.selection is not None
        kept = plan.selection.select(scores, positions, held[-1].rows.seen)
        chosen = kept.split([one.scores.shape[1] for one in held], 1)
        _keep(held, [mine[:, :, width - one.scores.shape[2] :] for one, mine in zip(held, chosen, strict=True)])


def drop(one: Sequence, tokens: Int[Tensor, " token"]) -> None:
    """Let go of these tokens, as if an update had not kept them; those of them that wait to ask in place do not ask."""
    if not one.begun or not sum(one.slots()) or not len(tokens):
        return
    rows = Rows([one])
    positions = _whole(rows).positions
    kept = (positions >= 0) & ~torch.isin(positions, tokens.to(positions))
    if one.asking.count:
        ask, (query, looked) = kept[0, -one.asking.count :], joined([one.asking])
        one.asking.clear()
        if bool(ask.any()):
            hold([one.asking], query[:, :, ask], looked[:, :, ask[: looked.shape[2]]])
    stay = kept.sum(-1)
    _compact(rows, kept, stay, stay.tolist())


def _wider(values: Tensor, width: int, fill: float) -> Tensor:
    """Filled up at the old end to so many slots."""
    return torch.nn.functional.pad(values, (width - values.shape[2], 0), value=fill)


def _whole(rows: Rows) -> Part:
    """All lanes of these rows in one tensor, right-aligned."""
    lanes = rows.store.lanes(rows.at)
    return rows.store.whole(lanes) or rows.store.padded(lanes)


def _scored(rows: Rows) -> Scored:
    """A score for each slot and the token it holds."""
    plan = rows.plan
    assert plan.selection is not None
    ask_rest(rows)
    know_tail(rows)
    store, split = rows.store, (len(rows.at), rows.store.heads)
    held = store.held_by(rows.at, rows.stored)
    view = View(
        state=held.state.unflatten(0, split),
        positions=held.positions.unflatten(0, split),
        keys=held.keys.unflatten(0, split),
        seen=rows.seen,
        target=plan.selection.target(rows.seen),
        rows=store.constant([one.row for one in rows.sequences]),
        layer=rows.first.layer,
        heads=store.constant(range(store.heads)),
        padded=held.empty is not None,
    )
    scores = plan.policy.score(view)
    alone = rows.pool() is not None and type(plan.selection) in (Budget, Threshold)  # they leave empty slots out
    if held.empty is not None and not alone:
        scores = scores.masked_fill(held.empty.unflatten(0, split), -torch.inf)
    if plan.probe is not None:
        _show(rows, view, scores)
    return Scored(rows, view.positions, scores)


def _show(rows: Rows, view: View, scores: Tensor) -> None:
    """A probe is shown rows one by one, and of these heads that hold equally many slots together."""
    probe, store = rows.plan.probe, rows.store
    assert probe is not None
    for place, at in enumerate(rows.at):
        for part in store.runs(store.lanes([at]), store.heads):
            here, held = slice(place, place + 1), slice(scores.shape[2] - part.count, None)
            state, positions, keys = (t[here, part.lanes] for t in (view.state, view.positions, view.keys))
            probe.on_update(
                View(
                    state[..., held], positions[..., held], keys[:, :, held], view.seen, view.target, view.rows[here],
                    view.layer, view.heads[part.lanes],
                ),
                scores[here, part.lanes, held],
            )  # fmt: skip


def _keep(held: list[Scored], kept: list[Bool[Tensor, "batch kv_head _"]]) -> None:
    """Only these slots stay; what had fallen due is done. The device is waited for once, however many layers.

    Raises:
        ScoreError: a score that is no number.
    """
    device = kept[0].device
    masks = [mine.flatten(0, 1).to(one.scores.device) for one, mine in zip(held, kept, strict=True)]
    told = [_tally(one, mine) for one, mine in zip(held, masks, strict=True)]
    if len(held) == 1 and _keep_blindly(held[0], masks[0], told[0]):
        _noted(held[0].rows)
        return
    together = [numbers.to(device) for numbers in told]
    read = iter(read_numbers(together[0] if len(together) == 1 else torch.cat(together)))
    stay = []
    for one, mine, numbers in zip(held, masks, told, strict=True):
        stay.append([next(read) for _ in range(len(mine))])
        strange = [next(read) for _ in range(len(numbers) - len(mine))]
        if any(strange):
            raise _refusal(one.rows)
    for one, mine, numbers, counts in zip(held, masks, told, stay, strict=True):
        _compact(one.rows, mine, numbers[: len(mine)], counts)
        _noted(one.rows)


def _noted(rows: Rows) -> None:
    """What had fallen due is done."""
    for row in rows.sequences:
        row.updates = row.plan.updates(row.seen)


def _refusal(rows: Rows) -> ScoreError:
    return ScoreError(
        "finite scores",
        f"NaN from {rows.plan.policy!r} in layer {rows.first.layer} after {rows.seen} tokens",
        "Check the parameters of the memory and that the model itself gives no NaN in this dtype.",
    )


def _keep_blindly(one: Scored, kept: Bool[Tensor, "lane slot"], told: Int[Tensor, " number"]) -> bool:
    """Keep these slots without waiting for the device to say how many they are, where a budget says it."""
    rows, store, selection = one.rows, one.rows.store, one.rows.plan.selection
    if rows.pool() is None or type(selection) is not Budget:  # a subclass may keep other numbers
        return False
    store.settle()  # an earlier update of other rows may have left something to tell
    held = {row: [store.count[lane] for lane in store.lanes([row])] for row in rows.at}
    stay = {row: selection.stays(counts, rows.seen) for row, counts in held.items()}
    totals = {row: total for row, (_, total) in stay.items()}
    each = [number for counts, _ in stay.values() for number in counts or ()]
    numbers, refusal, seen = sent(told), _refusal(rows), told[: len(kept)]
    if each or all(total == sum(held[row]) for row, total in totals.items()):
        _compact(rows, kept, seen, each or [number for counts in held.values() for number in counts])
        store.doubt(rows.at, numbers, refusal)
    else:
        before = store.nbytes()
        store.compact_blindly(rows.at, kept, seen, totals, numbers, refusal)
        _tell(rows, before)
    return True


def _tally(one: Scored, kept: Bool[Tensor, "lane slot"]) -> Int[Tensor, " number"]:
    """How many slots stay in each lane, then whether some scores are no numbers."""
    if (pool := one.rows.pool()) is not None:
        return fused.tally(kept, one.scores.flatten(0, 1), pool).flatten()
    return torch.cat([kept.sum(-1), torch.isnan(one.scores).any().view(1)])


def read_numbers(numbers: Int[Tensor, " number"]) -> list[int]:
    """The one time that an update waits for the device."""
    return numbers.tolist()


def _compact(rows: Rows, kept: Bool[Tensor, "lane slot"], stay: Int[Tensor, " lane"], counts: list[int]) -> None:
    store, lanes = rows.store, rows.store.lanes(rows.at)
    if sum(counts) == sum(store.count[lane] for lane in lanes):
        return  # nothing is forgotten
    before, count = store.nbytes(), list(store.count)
    for lane, number in zip(lanes, counts, strict=True):
        count[lane] = number
    if rows.pool() is not None:
        store.compact(rows.at, kept, stay, count)
    else:
        store.keep(_index(rows, kept, counts), count)
    _tell(rows, before)


def _tell(rows: Rows, before: int) -> None:
    """The meter is told what is held, and that the old pool was held too for a moment."""
    for place, one in enumerate(rows.sequences):
        one.note(before if place == len(rows.sequences) - 1 else 0)


def _index(rows: Rows, kept: Bool[Tensor, "lane slot"], counts: list[int]) -> Int[Tensor, " kept"]:
    """Where in the pool all slots are that stay; other rows keep what they have."""
    store, heads = rows.store, rows.store.heads
    index = _chosen(_whole(rows), kept, sum(counts))
    if len(counts) == len(store.count):
        return index
    parts = index.split([sum(counts[i : i + heads]) for i in range(0, len(counts), heads)])
    mine = dict(zip(rows.at, parts, strict=True))
    every = range(len(store.count) // heads)
    return torch.cat([mine[row] if row in mine else store.used(store.lanes([row])) for row in every])


def _chosen(part: Part, kept: Bool[Tensor, "lane slot"], total: int) -> Int[Tensor, " kept"]:
    """Where in the pool the slots are that stay, in order."""
    index = part.index
    if index.device.type == "cpu":
        return index[kept]
    place = torch.where(kept, kept.flatten().cumsum(0).view_as(kept) - 1, total)
    return index.new_empty(total + 1).scatter_(0, place.flatten(), index.flatten())[:total]
