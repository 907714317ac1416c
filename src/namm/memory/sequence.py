"""One row of one layer: its schedule, and a view of what it holds in the layer's store.

A sequence counts real tokens only. Padding never reaches it, so a row of a padded batch is the same sequence, bit for
bit, as that row alone. Rows that are at the same point do together what they do.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from collections.abc import Sequence as Several
from contextlib import contextmanager
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from namm.kernels import Lanes, fused
from namm.memory.plan import Plan, Scaling
from namm.memory.queries import Queries
from namm.memory.reducing import Reduced
from namm.memory.store import Part, Store, pads


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
    """The memory of one row.

    Attributes:
        row: its place in the batch.
        seen: real tokens read, kept or not.
        updates: how often it has forgotten.
        store, at: where its slots are, and which row of that store it is; nowhere before the first token.
        tail: its last queries, from which attention to what is left can be replayed.
        asking: the queries that ask in place once their window is full.
        scaling: of the last read.
    """

    store: Store
    at: int

    def __init__(self, plan: Plan, row: int, layer: int, meter: Meter) -> None:
        self.plan, self.row, self.layer, self._meter = plan, row, layer, meter
        policy = plan.policy
        self.watches, self.rehearsal = policy.watches, policy.asks_in_place
        self.hop, self.overlap = policy.hop, policy.overlap
        self.observer = id(policy) if policy.observer is policy else policy.observer
        self.scaling = Scaling(1.0)
        self.seen = 0
        self.updates = 0

    @property
    def begun(self) -> bool:
        """Whether it has a place in a store."""
        return hasattr(self, "store")

    def begin(self, store: Store, at: int) -> None:
        """Its slots are row `at` of `store`."""
        self.store, self.at = store, at
        self.tail, self.asking = Queries(store.heads), Queries(store.heads)

    @property
    def due(self) -> bool:
        """Whether an update has fallen due that was not made yet."""
        return self.updates < self.plan.updates(self.seen)

    @property
    def point(self) -> Hashable:
        """The same for rows that read and observe alike from here on, in one store."""
        ends = self.plan.next_update(self.seen) is None
        tail, asking = self.tail, self.asking
        return id(self.store), self.observer, self.seen, ends, tail.count, tail.known, asking.count, asking.known

    def add(self, query: Tensor, place: int, scaling: Scaling) -> bool:
        """One token was read, whose query is at this place; returns whether a hop or a window is full now."""
        goes_on = self.plan.next_update(self.seen) is not None
        self.seen += 1
        self.scaling = scaling
        if goes_on and self.rehearsal is not None:
            self.asking.add(query, place)
        if goes_on and self.watches:
            self.tail.add(query, place)
        else:
            self.tail.clear()
        return self.full_hop or self.full_window

    @property
    def full_hop(self) -> bool:
        """Whether queries that came one by one make a hop, which is to be observed."""
        return self.tail.count > 0 and self.seen % self.hop == 0

    @property
    def full_window(self) -> bool:
        """Whether the queries that are held are to ask in place."""
        return self.rehearsal is not None and self.asking.count >= self.rehearsal.window

    # -- accounting --------------------------------------------------------------------------------------------

    def slots(self) -> list[int]:
        """Slots held by each kv head."""
        return [self.store.count[lane] for lane in self.store.lanes([self.at])] if self.begun else []

    def kept_positions(self) -> list[list[int]]:
        """Tokens held by each kv head, ascending."""
        if not self.begun:
            return []
        lanes = [(self.store.start[i], self.store.count[i]) for i in self.store.lanes([self.at])]
        return [self.store.positions[start : start + count].tolist() for start, count in lanes]

    def tensors(self) -> list[Tensor]:
        """Every tensor this sequence holds on to, those of its store included."""
        return [*self.store.held(), *self.tail.tensors(), *self.asking.tensors()] if self.begun else []

    def nbytes(self) -> int:
        """Bytes of its share of them."""
        return self.store.nbytes(self.at) + self.tail.nbytes() + self.asking.nbytes() if self.begun else 0

    def note(self, besides: int = 0) -> None:
        """Tell the meter what is held."""
        self._meter.note(self.layer, self.row, self.nbytes(), besides)

    def follow(self, other: Sequence) -> None:
        """Take over where another one stands, but for the place of its slots."""
        self.tail, self.asking, self.scaling = other.tail.clone(), other.asking.clone(), other.scaling
        self.seen, self.updates = other.seen, other.updates


class Rows:
    """Rows of one store, at the same point."""

    def __init__(self, sequences: list[Sequence]) -> None:
        self.sequences = sequences
        self.first = sequences[0]
        self.plan, self.store = self.first.plan, self.first.store
        self.at = [one.at for one in sequences]

    @property
    def seen(self) -> int:
        return self.first.seen

    @property
    def scaling(self) -> Scaling:
        return self.first.scaling

    @property
    def tails(self) -> list[Queries]:
        return [one.tail for one in self.sequences]

    @property
    def asking(self) -> list[Queries]:
        return [one.asking for one in self.sequences]

    def parts(self, queries: int = 1) -> list[Part]:
        """Their lanes, in the parts that so many queries are computed in."""
        return self.store.parts(self.at, queries)

    def pool(self, group: int = 1) -> Lanes | None:
        """Their lanes with so many query heads each, where kernels serve that take them as they are."""
        return self.store.ragged(self.at) if fused.serves(self.store.keys, self.store.values, group) else None

    @property
    def stored(self) -> float:
        """What the state is held times."""
        scale = self.plan.policy.half_scale
        return scale if scale is not None and self.store.state.dtype == torch.float16 else 1.0

    def observe(self, part: Part, attention: Float[Tensor, "lane query slot"]) -> None:
        """Show the policy what is attended to."""
        seen = self.plan.policy.observe(self.decode(part.state[..., : attention.shape[-1]]), attention)
        part.write(self._encode(seen))

    def rehearse(self, part: Part, slots: int, attention: Float[Tensor, "lane query slot"]) -> None:
        """Show the policy what queries of a rehearsal attend to, of the oldest so many slots."""
        seen = self.plan.policy.rehearse(self.decode(part.state[..., :slots]), attention[..., :slots])
        part.write(self._encode(seen))

    @contextmanager
    def taking(self, part: Part, slots: int, rehearsal: bool) -> Iterator[Callable[[Tensor], None]]:
        """What shows the policy attention to the oldest so many slots, a few queries at a time."""
        reductions = self.plan.policy.reductions(rehearsal)
        if not reductions or pads(self.store.keys.device):  # there they are all of a window
            yield partial(self.rehearse, part, slots) if rehearsal else partial(self.observe, part)
            return
        state = self.decode(part.state[..., :slots])
        yield (taken := Reduced(state, reductions, 0 if rehearsal else self.first.overlap))
        part.write(self._encode(taken.state()))

    def decode(self, state: Tensor) -> Float[Tensor, "lane channel slot"]:
        scale = self.plan.policy.half_scale
        return state if state.dtype == torch.float32 or scale is None else state.float() / scale

    def _encode(self, state: Tensor) -> Tensor:
        scale = self.plan.policy.half_scale
        return state * scale if self.store.state.dtype == torch.float16 and scale is not None else state


def at_one_point(sequences: Several[Sequence], key: Callable[[Sequence], Hashable]) -> list[list[int]]:
    """Which of these are alike, as places."""
    groups: dict[Hashable, list[int]] = {}
    for place, one in enumerate(sequences):
        groups.setdefault(key(one), []).append(place)
    return list(groups.values())


def lanes_of(parts: Iterable[Tensor]) -> Tensor:
    """The lanes of several parts."""
    held = list(parts)
    return held[0] if len(held) == 1 else torch.cat(held)


def begin(sequences: Several[Sequence], keys: Tensor, values: Tensor) -> None:
    """Give these rows stores, for keys and values `[row, kv_head, token, dim]`; rows with equal state share one."""
    kinds: dict[Hashable, list[Sequence]] = {}
    for one in sequences:
        kinds.setdefault(_kind(one, keys), []).append(one)
    for alike in kinds.values():
        plan = alike[0].plan
        store = Store.empty(len(alike), keys, values, plan.policy.channels, plan.state_dtype(keys.dtype))
        for at, one in enumerate(alike):
            one.begin(store, at)


def copied(sequences: Several[Sequence], meter: Meter, plans: Several[Plan] | None = None) -> list[Sequence]:
    """Copies, as rows 0, 1, .. of a batch, that go their own way from here; other `plans` must observe alike."""
    twins = [
        Sequence(one.plan if plans is None else plans[row], row, one.layer, meter) for row, one in enumerate(sequences)
    ]
    kinds: dict[Hashable, list[int]] = {}
    for row, one in enumerate(sequences):
        if one.begun:
            kinds.setdefault(_kind(one, one.store.keys), []).append(row)
        else:
            twins[row].seen, twins[row].updates = one.seen, one.updates
    for alike in kinds.values():
        store = Store.of([(sequences[row].store, sequences[row].at) for row in alike])
        for at, row in enumerate(alike):
            twins[row].begin(store, at)
            twins[row].follow(sequences[row])
            twins[row].note()
    return twins


def _kind(one: Sequence, keys: Tensor) -> Hashable:
    """Rows with as many numbers of state, of one kind, can be in one store."""
    return one.plan.policy.channels, one.plan.state_dtype(keys.dtype)
