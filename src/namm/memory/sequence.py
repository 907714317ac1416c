"""One sequence in one layer: it reads tokens, attends, observes, and forgets on its own schedule.

A sequence counts real tokens only. Padding never reaches it, so a row of a padded batch is the same sequence, bit for
bit, as that row alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from namm import kernels
from namm.errors import ModelError, ScoreError
from namm.memory.plan import Plan, Scaling
from namm.memory.slots import Block, Tail, aligned, compact
from namm.policies.base import Rehearsal, View
from namm.selection import Selection


class Meter:
    """Bytes held by all layers and rows of a cache together, and the most there ever were."""

    def __init__(self) -> None:
        self.held: dict[tuple[int, int], int] = {}
        self.peak = 0

    def note(self, layer: int, row: int, held: int, besides: int = 0) -> None:
        """A row of a layer now holds `held` bytes, and `besides` for a moment."""
        self.held[layer, row] = held
        self.peak = max(self.peak, sum(self.held.values()) + besides)

    def drop(self, layer: int) -> None:
        """The rows of a layer make way for others."""
        self.held = {place: held for place, held in self.held.items() if place[0] != layer}


class Sequence:
    """The memory of one row: its slots, its last queries, and how many tokens it has read.

    Attributes:
        seen: real tokens read, kept or not.
        updates: how often it has forgotten.
    """

    def __init__(self, plan: Plan, row: int, layer: int, meter: Meter) -> None:
        self.plan, self.row, self.layer, self._meter = plan, row, layer, meter
        self.blocks: list[Block] = []
        self.tail: Tail | None = None
        self._asking: Tail | None = None
        self._newest: list[Tensor] = []  # queries that came one by one, not joined to these yet
        self.scaling = Scaling(1.0)  # of the last read
        self.seen = 0
        self.updates = 0

    # -- reading -----------------------------------------------------------------------------------------------

    @property
    def due(self) -> bool:
        """Whether an update has fallen due that was not made yet."""
        return self.updates < self.plan.updates(self.seen)

    def read(
        self,
        query: Float[Tensor, "head token dim"],
        keys: Float[Tensor, "kv_head token dim"],
        values: Float[Tensor, "kv_head token value_dim"],
        scaling: Scaling,
        visible: Bool[Tensor, "token column"] | None = None,
    ) -> Float[Tensor, "head token value_dim"]:
        """Attention output for new tokens, which are remembered; forgets whenever an update falls due.

        Where others have a say, one that falls due at the end of these tokens is left to them. Where all layers decide
        together, so is one that falls due before it.

        Args:
            visible: which tokens of the whole sequence each new token may attend to, in place of causality.
        """
        if not self.blocks:
            dtype = self.plan.state_dtype(keys.dtype)
            self.blocks = [Block.empty(keys, values, self.plan.policy.channels, dtype)]
        tokens = keys.shape[1]
        grouped = query.unflatten(0, (keys.shape[0], -1))
        pieces, start = [], 0
        while start < tokens:
            due = None if self.plan.jointly else self.plan.next_update(self.seen)
            stop = tokens if due is None else min(tokens, start + due - self.seen)
            here = None if visible is None else visible[start:stop]
            end = self.seen + stop - start
            if here is not None and bool(here[:, end:].any()):
                raise ModelError(
                    "tokens that see no further than the next update", f"one that looks past token {end}",
                    "Choose an update_interval that does not cut through an image whose tokens see each other.",
                )  # fmt: skip
            piece = slice(start, stop)
            pieces.append(self._attend(grouped[:, :, piece], keys[:, piece], values[:, piece], scaling, here))
            if self.seen == due and not (self.plan.in_pieces and stop == tokens):
                self.update()
            start = stop
        return (pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=2)).flatten(0, 1)

    def rehearse(
        self,
        query: Float[Tensor, "head token dim"],
        keys: Float[Tensor, "kv_head token dim"],
        values: Float[Tensor, "kv_head token value_dim"],
        scaling: Scaling,
    ) -> Float[Tensor, "head token value_dim"]:
        """Attention output for tokens that nobody will remember; what they attend to is observed."""
        policy = self.plan.policy
        grouped = query.unflatten(0, (keys.shape[0], -1))
        outputs = []
        for block in self.blocks:
            held_keys, held_values, _, state = block.used()

            out, _ = kernels.attend_and_observe(
                grouped[block.heads],
                torch.cat([held_keys, keys[block.heads]], 1),
                torch.cat([held_values, values[block.heads]], 1),
                scaling.scale,
                softcap=scaling.softcap,
                observe=partial(self._rehearse, state) if policy.channels else None,
            )
            outputs.append(out)
        return (outputs[0] if len(outputs) == 1 else torch.cat(outputs)).flatten(0, 1)

    def _attend(
        self, query: Tensor, keys: Tensor, values: Tensor, scaling: Scaling, visible: Tensor | None
    ) -> Float[Tensor, "kv_head group token value_dim"]:
        """Append a piece that crosses no update, attend it to everything held, and observe if an update will come."""
        policy, new = self.plan.policy, query.shape[2]
        due = self.plan.next_update(self.seen) is not None
        rehearsal = policy.asks_in_place if due else None
        watching = policy.watches and due
        pending = self.seen % policy.hop
        full = watching and pending + new >= policy.hop  # a hop, which is to be observed
        at_once = watching and (visible is not None or (full and new >= policy.hop))  # while attention is computed
        grown = [block.append(keys[block.heads], values[block.heads], self.seen) for block in self.blocks]
        if any(grown):
            self._meter.note(self.layer, self.row, self.nbytes())
        competes = rehearsal is not None and rehearsal.competes and new > 1
        if at_once or competes or scaling.softcap is not None:
            carried = self._carried(new, policy.overlap + pending, scaling) if at_once else None
            out, lse = self._observed(query, scaling, visible, carried, full)
        else:
            out, lse = self._plain(query, scaling, visible), None
        self.seen += new
        self.scaling = scaling
        if rehearsal is not None:
            self._hold(query, lse, rehearsal)
        if not watching:
            self.tail = None
        elif at_once and lse is not None:
            self.tail = self._tail(query).extended(query, lse, min(policy.overlap + self.seen % policy.hop, self.seen))
        else:
            self._remember(query, full)
        return out

    def _plain(
        self, query: Tensor, scaling: Scaling, visible: Tensor | None
    ) -> Float[Tensor, "kv_head group token value_dim"]:
        """Attention that nobody looks at, by the fastest way there is."""
        held = [block.used()[:3] for block in self.blocks]
        if query.shape[2] == 1 and visible is None:
            keys, values, _ = zip(*held, strict=True)
            return kernels.attend_one(query.squeeze(2), keys, values, scaling.scale).unsqueeze(2)
        return _joined(
            kernels.attend(query[block.heads], keys, values, scaling.scale, _mask(visible, positions))
            for block, (keys, values, positions) in zip(self.blocks, held, strict=True)
        )

    def _observed(
        self, query: Tensor, scaling: Scaling, visible: Tensor | None, rows: list[Tensor] | None, observes: bool
    ) -> tuple[Float[Tensor, "kv_head group token value_dim"], Float[Tensor, "kv_head group token"]]:
        """Attention and the log-sum-exp of each query; the policy `observes` them, after `rows` of earlier queries."""
        outputs, sums = [], []
        for place, block in enumerate(self.blocks):
            keys, values, positions, _ = block.used()
            out, lse = kernels.attend_and_observe(
                query[block.heads],
                keys,
                values,
                scaling.scale,
                softcap=scaling.softcap,
                visible=_mask(visible, positions),
                carried=rows[place] if rows else None,
                hop=self.plan.policy.hop,
                overlap=self.plan.policy.overlap,
                observe=partial(self._observe, block) if observes and rows else None,
            )
            outputs.append(out)
            sums.append(lse)
        return _joined(outputs), _joined(sums)

    def _tail(self, query: Tensor) -> Tail:
        return self.tail or self._no_tail(query)

    def _no_tail(self, query: Tensor) -> Tail:
        return Tail(query[:, :, :0], torch.empty(*query.shape[:2], 0, device=query.device))

    def _remember(self, query: Tensor, full: bool) -> None:
        """Keep queries that came in small numbers, and observe a hop of them together once it is full."""
        policy, tail = self.plan.policy, self._tail(query)
        self.tail = Tail(torch.cat([tail.query, query], 2), tail.lse)
        if not full:
            return
        observed, rest = policy.overlap + policy.hop, self.seen % policy.hop
        for block, rows in zip(self.blocks, self._carried(0, observed + rest, self.scaling), strict=True):
            self._observe(block, rows[:, :observed])
        self.tail = self.tail.extended(query[:, :, :0], self.tail.lse[:, :, :0], policy.overlap + rest)

    # -- asking in place ---------------------------------------------------------------------------------------

    @property
    def asking(self) -> Tail | None:
        """The queries that ask in place once their window is full."""
        if self._newest:
            held = self._asking or self._no_tail(self._newest[0])
            self._asking, self._newest = Tail(torch.cat([held.query, *self._newest], 2), held.lse), []
        return self._asking

    @asking.setter
    def asking(self, held: Tail | None) -> None:
        self._asking, self._newest = held, []

    def _hold(self, query: Tensor, lse: Tensor | None, rehearsal: Rehearsal) -> None:
        """Keep queries until their window is full, counted from the last update, and then let them ask."""
        count = query.shape[2]
        waiting = len(self._newest) + (self._asking.query.shape[2] if self._asking else 0)
        if count == 1 and lse is None and waiting + 1 < rehearsal.window:
            self._newest.append(query)
            return
        held = self.asking or self._no_tail(query)
        if lse is not None and rehearsal.competes:
            known = self._looked_back(held, count)
            held = Tail(torch.cat([held.query, query], 2), torch.cat([known, lse], 2))
        else:
            held = Tail(torch.cat([held.query, query], 2), held.lse)
        while (count := held.query.shape[2]) >= rehearsal.window:
            held = self._ask(held, rehearsal, min(count, rehearsal.window))
        self.asking = held.clone() if count else None

    def ask_rest(self) -> None:
        """Let the held queries ask before their window is full, since an update is due."""
        rehearsal = self.plan.policy.asks_in_place
        if rehearsal is not None and self.asking is not None:
            self._ask(self.asking, rehearsal, self.asking.query.shape[2])
        self.asking = None

    def _ask(self, held: Tail, rehearsal: Rehearsal, count: int) -> Tail:
        """Show the tokens read so far, where they are held, to the policy as the first `count` queries attend to them.

        Returns the other queries.
        """
        rotation = self.scaling.rotation if rehearsal.rotated else None
        query = held.query[:, :, :count]
        moved = query if rotation is None else rotation.move(query, rehearsal.window)
        looked = self._looked_back(held, 0) if rehearsal.competes else None
        later = held.query.shape[2] - count
        for block in self.blocks:
            keys, _, _, state = block.used()
            slots = block.count - later  # the newest tokens are held by every head
            kernels.ask(
                moved[block.heads], keys[:, :slots], self.scaling.scale, self.scaling.softcap,
                partial(self._rehearse, state[..., :slots]),
                None if looked is None else looked[block.heads, :, :count],
            )  # fmt: skip
        return Tail(held.query[:, :, count:], held.lse[:, :, count:] if looked is None else looked[:, :, count:])

    def _looked_back(self, held: Tail, new: int) -> Float[Tensor, "kv_head group query"]:
        """The log-sum-exp of held queries, before `new` tokens that came after them; those of single ones are found."""
        known = held.lse.shape[2]
        if known == held.query.shape[2]:
            return held.lse
        found = []
        for block in self.blocks:
            keys = block.used()[0]
            found.append(kernels.look_back(
                held.query[block.heads, :, known:], keys[:, : block.count - new], self.scaling.scale,
                self.scaling.softcap,
            )[1])  # fmt: skip
        return torch.cat([held.lse, _joined(found)], 2)

    def _rehearse(self, state: Tensor, attention: Tensor) -> None:
        seen = self.plan.policy.rehearse(self._decode(state), attention[..., : state.shape[-1]])
        state.copy_(self._encode(seen))

    # -- observing ---------------------------------------------------------------------------------------------

    def _carried(self, new: int, length: int, scaling: Scaling) -> list[Float[Tensor, "kv_head query slot"]]:
        """Attention of the last `length` queries to the slots before the newest `new`, block by block.

        Zeros before the text began. From now on the log-sum-exp of every query in the tail is known.
        """
        parts, sums = [], []
        for block in self.blocks:
            keys, _, positions, _ = block.used()
            old = keys.shape[1] - new
            rows = torch.zeros(keys.shape[0], length, old, device=keys.device)
            parts.append(rows)
            if self.tail is None or not (count := self.tail.query.shape[2]):
                continue
            keys, query, lse = keys[:, :old], self.tail.query[block.heads], self.tail.lse[block.heads]
            known, rows = lse.shape[2], rows[:, length - count :]
            if known:
                asked = torch.arange(self.seen - count, self.seen - count + known, device=keys.device)
                seen = positions[:, None, :old] <= asked[:, None]
                rows[:, :known] = kernels.replay(query[:, :, :known], lse, keys, scaling.scale, scaling.softcap, seen)
            if known < count:
                rows[:, known:], later = kernels.look_back(query[:, :, known:], keys, scaling.scale, scaling.softcap)
                sums.append(torch.cat([lse, later], 2))
        if self.tail is not None and sums:
            self.tail = Tail(self.tail.query, torch.cat(sums))
        return parts

    def _observe(self, block: Block, attention: Tensor) -> None:
        held = block.state[:, :, : attention.shape[-1]]
        held.copy_(self._encode(self.plan.policy.observe(self._decode(held), attention)))

    def _decode(self, state: Tensor) -> Float[Tensor, "kv_head channel slot"]:
        scale = self.plan.policy.half_scale
        return state if state.dtype == torch.float32 or scale is None else state.float() / scale

    def _encode(self, state: Tensor) -> Tensor:
        scale = self.plan.policy.half_scale
        return state * scale if self.blocks[0].state.dtype == torch.float16 and scale is not None else state

    # -- forgetting --------------------------------------------------------------------------------------------

    def update(self) -> None:
        """Score every slot, select, and keep only what was selected."""
        scores, positions = self.scored()
        assert self.plan.selection is not None
        self.keep(self.plan.selection.select(scores[None], positions[None], self.seen)[0])

    def scored(self) -> tuple[Float[Tensor, "kv_head slot"], Int[Tensor, "kv_head slot"]]:
        """A score for each slot and the token it holds, right-aligned: -inf and -1 where a head has no slot.

        Raises:
            ScoreError: a score that is no number.
        """
        selection = self.plan.selection
        assert selection is not None
        self.ask_rest()
        if self.tail is not None and self.tail.lse.shape[2] < (held := self.tail.query.shape[2]):
            self._carried(0, held, self.scaling)  # while the slots that these queries saw are all there
        width = max(block.count for block in self.blocks)
        positions = aligned((b.used()[2] for b in self.blocks), width, -1)
        scores = aligned((self._score(b, selection) for b in self.blocks), width, -torch.inf)
        if bool(torch.isnan(scores).any()):
            raise ScoreError(
                "finite scores", f"NaN from {self.plan.policy!r} in layer {self.layer} after {self.seen} tokens",
                "Check the parameters of the memory and that the model itself gives no NaN in this dtype.",
            )  # fmt: skip
        return scores, positions

    def keep(self, kept: Bool[Tensor, "kv_head slot"]) -> None:
        """Only these slots stay, right-aligned as they were scored; what had fallen due is done."""
        before = self.blocks
        self.blocks = compact(before, kept)
        self.updates = self.plan.updates(self.seen)
        if self.blocks is not before:
            besides = sum(block.nbytes() for block in before)
            self._meter.note(self.layer, self.row, self.nbytes(), besides)

    def drop(self, tokens: Int[Tensor, " token"]) -> None:
        """Let go of these tokens, as if an update had not kept them."""
        width = max((block.count for block in self.blocks), default=0)
        if not width or not len(tokens):
            return
        positions = aligned((b.used()[2] for b in self.blocks), width, -1)
        kept = (positions >= 0) & ~torch.isin(positions, tokens.to(positions))
        self.blocks = compact(self.blocks, kept)
        self._meter.note(self.layer, self.row, self.nbytes())

    def _score(self, block: Block, selection: Selection) -> Float[Tensor, "kv_head slot"]:
        keys, _, positions, state = block.used()
        view = View(
            state=self._decode(state)[None],
            positions=positions[None],
            keys=keys[None],
            seen=self.seen,
            target=selection.target(self.seen),
            rows=torch.tensor([self.row], device=keys.device),
            layer=self.layer,
            heads=torch.arange(block.heads.start, block.heads.stop, device=keys.device),
        )
        scores = self.plan.policy.score(view)
        if self.plan.probe is not None:
            self.plan.probe.on_update(view, scores)
        return scores[0]

    # -- accounting --------------------------------------------------------------------------------------------

    def slots(self) -> list[int]:
        """Slots held by each kv head."""
        return [block.count for block in self.blocks for _ in range(len(block.keys))]

    def kept_positions(self) -> list[list[int]]:
        """Tokens held by each kv head, ascending."""
        return [head.tolist() for block in self.blocks for head in block.used()[2]]

    def tensors(self) -> list[Tensor]:
        """Every tensor this sequence holds on to."""
        held = [tensor for block in self.blocks for tensor in block.tensors()]
        return held + [tensor for tail in (self.tail, self.asking) if tail for tensor in (tail.query, tail.lse)]

    def nbytes(self) -> int:
        return sum(held.nbytes() for held in (*self.blocks, self.tail, self.asking) if held)

    def trim(self) -> None:
        """Give back the free slots that appending leaves."""
        for block in self.blocks:
            if block.count < block.keys.shape[1]:
                block.resize(block.count)
        self._meter.note(self.layer, self.row, self.nbytes())

    def clone(self, row: int, meter: Meter, plan: Plan | None = None) -> Sequence:
        """A copy that goes its own way from here, as row `row` of a batch; another `plan` must observe alike."""
        twin = Sequence(plan or self.plan, row, self.layer, meter)
        twin.blocks = [block.clone() for block in self.blocks]
        twin.tail = self.tail.clone() if self.tail else None
        twin.asking, twin.scaling = self.asking.clone() if self.asking else None, self.scaling
        twin.seen, twin.updates = self.seen, self.updates
        meter.note(self.layer, row, twin.nbytes())
        return twin


def _joined(parts: Iterable[Tensor]) -> Tensor:
    """The heads of several blocks."""
    held = list(parts)
    return held[0] if len(held) == 1 else torch.cat(held)


def _mask(visible: Tensor | None, positions: Tensor) -> Bool[Tensor, "kv_head token slot"] | None:
    """Which slots each token may attend to, of what it may of the whole sequence."""
    return None if visible is None else visible[:, positions.long()].transpose(0, 1)


def update_together(layers: list[Sequence]) -> None:
    """One selection for the same row of all layers, of which each keeps its part."""
    plan, seen = layers[0].plan, layers[0].seen
    assert plan.selection is not None
    parts = [sequence.scored() for sequence in layers]
    width = max(scores.shape[1] for scores, _ in parts)
    device = parts[0][0].device
    scores = aligned((scores.to(device) for scores, _ in parts), width, -torch.inf)
    positions = aligned((positions.to(device) for _, positions in parts), width, -1)
    kept = plan.selection.select(scores[None], positions[None], seen)[0]
    for sequence, (mine, _), chosen in zip(layers, parts, kept.split([len(mine) for mine, _ in parts]), strict=True):
        sequence.keep(chosen[:, width - mine.shape[1] :].to(mine.device))
