"""Ragged storage: the cached tokens of all rows and kv heads of one layer, in one pool.

A *lane* is one kv head of one row. Lanes lie one after another, rows first, each with its slots, oldest first, and room
for more. Nothing is padded: bytes held are bytes used, but for at most `SLACK` free slots a lane while tokens are
appended one by one, and on an accelerator one spare slot a pool, where what belongs nowhere is written.

A free slot has a zero state and the position that the next token of its row will have, so that a token which comes
alone is one write of keys and one of values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from namm.errors import NammError
from namm.kernels import Lanes, fused
from namm.memory.later import Later

SLACK = 32
FEW = 32  # queries


class Store:
    """The pool of some rows of a layer.

    Attributes:
        heads: lanes of each row, its kv heads.
        count, room: slots in use and slots reserved, of each lane.
        keys, values: `[slot, dim]`.
        positions: the token each slot holds, `[slot]`, int32.
        state: what the policy observed, `[channel, slot]`, in its storage dtype.
    """

    count: list[int]
    room: list[int]
    start: list[int]
    _coming: _Coming | None = None

    def __init__(
        self, heads: int, count: list[int], room: list[int], keys: Tensor, values: Tensor, positions: Tensor,
        state: Tensor,
    ) -> None:  # fmt: skip
        self.heads, self.count, self.room = heads, count, room
        self.keys, self.values, self.positions, self.state = keys, values, positions, state
        self._constants: dict[tuple[int, ...], Tensor] = {}
        self._laid_out()

    def __getattr__(self, name: str) -> list[int]:
        """Where lanes are is not known while counts are on their way; who asks, waits."""
        if name not in _PLACES or self._coming is None:
            raise AttributeError(name)
        self.settle()
        return self.__dict__[name]

    def settle(self, wait: bool = True) -> None:
        """Take what the device has told since the last update: counts of lanes, and whether scores were no numbers.

        Without `wait` only what is here already, and what nothing can go on without.
        """
        coming = self._coming
        if coming is None or not (wait or coming.numbers.here):
            return
        read = coming.numbers.read()
        if any(read[len(coming.lanes) :]):
            raise coming.refusal
        self._coming = None
        if coming.count is not None:
            for lane, number in zip(coming.lanes, read, strict=False):
                coming.count[lane] = number
            self.count, self.room = coming.count, list(coming.count)
            self._laid_out()

    def _laid_out(self) -> None:
        """Lanes have other places now."""
        self.start = [0, *accumulate(self.room)]
        self._ahead: _Ahead | None = None
        self._places: tuple[tuple[list[int], list[int]], Tensor, Tensor] | None = None  # of lanes that were padded last
        self._tabled: tuple[list[int], list[int], tuple[Tensor, Tensor]] | None = None  # lanes, where the pool is

    @classmethod
    def empty(cls, rows: int, keys: Tensor, values: Tensor, channels: int, dtype: torch.dtype) -> Store:
        """A store without slots, for keys and values `[row, kv_head, token, dim]`."""
        lanes, spare = rows * keys.shape[1], int(pads(keys.device))
        return cls(
            keys.shape[1],
            [0] * lanes,
            [0] * lanes,
            keys.new_zeros(spare, keys.shape[-1]),
            values.new_zeros(spare, values.shape[-1]),
            torch.full((spare,), -1, dtype=torch.int32, device=keys.device),
            torch.zeros(channels, spare, dtype=dtype, device=keys.device),
        )

    @classmethod
    def of(cls, rows: Sequence[tuple[Store, int]]) -> Store:
        """A store of its own with copies of these rows."""
        first = rows[0][0]
        lanes = [(store, store.lanes([row])) for store, row in rows]
        pieces: list[list[Tensor]] = [[], [], [], []]
        spare = slice(first.start[-1], None)
        for store, mine in [*lanes, (first, None)]:
            part = spare if mine is None else slice(store.start[mine[0]], store.start[mine[-1] + 1])
            for kind, tensor in zip(pieces, store.tensors(), strict=True):
                kind.append(tensor[..., part] if kind is pieces[3] else tensor[part])
        count, room = ([getattr(s, name)[i] for s, mine in lanes for i in mine] for name in ("count", "room"))
        keys, values, positions = (torch.cat(kind) for kind in pieces[:3])
        return cls(first.heads, count, room, keys, values, positions, torch.cat(pieces[3], 1))

    # -- what is where -----------------------------------------------------------------------------------------

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.keys, self.values, self.positions, self.state

    def held(self) -> list[Tensor]:
        """Every tensor it holds on to."""
        ahead = (self._ahead.starts, self._ahead.slots, self._ahead.used) if self._ahead else ()
        tabled = self._tabled[2] if self._tabled else ()
        return [
            *self.tensors(), *ahead, *tabled, *self._constants.values(), *(self._places[1:] if self._places else ())
        ]  # fmt: skip

    def lanes(self, rows: Sequence[int]) -> list[int]:
        return [lane for row in rows for lane in range(row * self.heads, (row + 1) * self.heads)]

    def nbytes(self, row: int | None = None) -> int:
        """Bytes of the pool, or of a row's part of it."""
        if row is None:
            return sum(tensor.nbytes for tensor in self.tensors())
        slot = sum(tensor.nbytes for tensor in self.tensors()) // max(1, len(self.positions))
        if self._coming is not None and self._coming.count is not None:
            return slot * self._coming.totals[row]
        return slot * (self.start[(row + 1) * self.heads] - self.start[row * self.heads])

    def parts(self, rows: Sequence[int], queries: int = 1) -> list[Part]:
        """These rows' lanes in the parts that they are computed in by so many queries.

        Where launches cost they are one; of many queries on a CPU each is a row at most, whose probabilities its cache
        can hold.
        """
        pads_here, lanes = pads(self.keys.device), self.lanes(rows)
        runs = self.runs(lanes, self.heads if queries > FEW and not pads_here else len(lanes))
        return runs if len(runs) == 1 or not pads_here else [self.padded(lanes)]

    def whole(self, lanes: list[int]) -> Part | None:
        """These lanes in one part, if they lie side by side and hold equally many slots."""
        runs = self.runs(lanes, len(lanes))
        return runs[0] if len(runs) == 1 else None

    def runs(self, lanes: list[int], most: int) -> list[Part]:
        """These lanes, those side by side that hold equally many slots together, `most` at most."""
        runs, first = [], 0
        kinds = [(lane - i, self.count[lane], self.room[lane]) for i, lane in enumerate(lanes)]
        while first < len(lanes):
            stop = first + 1
            while stop < min(first + most, len(lanes)) and kinds[stop] == kinds[first]:
                stop += 1
            runs.append(Part(self, slice(first, stop), lanes[first], self.count[lanes[first]]))
            first = stop
        return runs

    def held_by(self, rows: Sequence[int], stored: float) -> Held:
        """What the lanes of these rows hold, in one tensor each, the state divided by what it is `stored` times."""
        lanes = self.lanes(rows)
        whole = self.whole(lanes)
        if fused.serves(self.keys, self.values):
            keys, positions, state, empty = fused.gather(self.ragged(rows), stored, copies=whole is None)
            return Held(keys, positions, state, empty) if whole is None else Held(whole.keys, positions, state, None)
        part = whole or self.padded(lanes)
        state = part.state if stored == 1 else part.state.float() / stored
        return Held(part.keys, part.positions, state, part.empty)

    def padded(self, lanes: list[int]) -> Padded:
        """These lanes as one tensor, the shorter ones filled up at the old end."""
        places = [self.start[i] for i in lanes], [self.start[i] + self.count[i] for i in lanes]
        if self._places is None or self._places[0] != places:
            width = max(self.count[lane] for lane in lanes)
            starts, ends = self._table([*places])
            index = ends[:, None] + torch.arange(-width, 0, device=ends.device)
            self._places = places, index.clamp(min=0), index < starts[:, None]
        return Padded(self, slice(0, len(lanes)), *self._places[1:])

    def _table(self, numbers: list[list[int]]) -> Int[Tensor, "number lane"]:
        """Numbers that the host knows, where the pool is; nothing waits for them to arrive."""
        return torch.tensor(numbers, dtype=torch.int32).to(self.keys.device, non_blocking=True)

    def constant(self, numbers: Sequence[int]) -> Int[Tensor, " number"]:
        """Numbers that are asked for again and again; on an accelerator they are brought there once."""
        if not pads(self.keys.device):
            return torch.tensor(numbers, device=self.keys.device)
        key = tuple(numbers)
        if key not in self._constants:
            self._constants[key] = torch.tensor(numbers).to(self.keys.device, non_blocking=True)
        return self._constants[key]

    def ragged(self, rows: Sequence[int]) -> Lanes:
        """These rows' lanes as kernels take them that serve lanes of unequal length."""
        lanes = self.lanes(rows)
        starts, counts = [self.start[lane] for lane in lanes], [self.count[lane] for lane in lanes]
        if not pads(self.keys.device):
            return Lanes(self.keys, self.values, starts, counts)
        taken = self._taken() if len(lanes) == len(self.count) else None
        if self._ahead is not None and taken:
            table = self._ahead.starts, self._ahead.used[taken - 1]
        elif self._tabled is not None and self._tabled[:2] == (starts, counts):
            table = self._tabled[2]
        else:
            begin, used = self._table([[*starts, self.start[-1]], [*counts, 0]])
            table = begin, used[:-1]
            self._tabled = starts, counts, table
        return Lanes(self.keys, self.values, starts, counts, table, self.positions, self.state)

    def bare(self) -> Lanes:
        """All lanes, for kernels that are told by other means where they are."""
        return Lanes(self.keys, self.values, self.start[:-1], self.count, None, self.positions, self.state)

    def _taken(self) -> int | None:
        """Tokens that every lane has taken since the next slots were numbered; None if these are no longer the next."""
        if self._ahead is None:
            return None
        steps = {count - before for count, before in zip(self.count, self._ahead.counts, strict=True)}
        return steps.pop() if len(steps) == 1 else None

    # -- changes -----------------------------------------------------------------------------------------------

    def append(
        self, rows: Sequence[int], keys: Float[Tensor, "row kv_head token dim"],
        values: Float[Tensor, "row kv_head token value_dim"], seen: list[int],
    ) -> bool:  # fmt: skip
        """Add tokens to every lane of these rows with a zero state; returns whether storage grew.

        Args:
            seen: tokens that each row has read so far, so the position of its first new one.
        """
        self.settle(wait=False)
        lanes, new = self.lanes(rows), keys.shape[2]
        frozen = self.keys.is_inference() and not torch.is_inference_mode_enabled()  # may not be written in place
        full = any(self.count[lane] + new > self.room[lane] for lane in lanes)
        if full or frozen:
            room = list(self.room)
            for lane in lanes:
                if (total := self.count[lane] + new) > room[lane]:
                    room[lane] = total if new > 1 else total + SLACK - 1
            if fused.serves(self.keys, self.values):
                self._take(room, rows, keys, values, seen)
                return True
            self._grow(room, dict(zip(rows, seen, strict=True)))
        where = None if new > 1 or not pads(self.keys.device) else self._next(lanes, new)
        if (run := self.whole(lanes)) is not None:
            for pool, fresh in ((self.keys, keys), (self.values, values)):
                run.view(pool, self.count[lanes[0]], new).copy_(fresh.flatten(0, 1) if len(rows) > 1 else fresh[0])
        else:
            where = self._next(lanes, new) if where is None else where
            self.keys[where] = keys.flatten(0, 1)
            self.values[where] = values.flatten(0, 1)
        for lane in lanes:
            self.count[lane] += new
        self._places = None
        return full or frozen

    def _take(self, room: list[int], rows: Sequence[int], keys: Tensor, values: Tensor, seen: list[int]) -> None:
        """Reserve so many slots for each lane and add tokens to those of these rows, in one go."""
        new, spare, reads = keys.shape[2], len(self.positions) - self.start[-1], set(self.lanes(rows))
        place = {row: (at, first) for at, (row, first) in enumerate(zip(rows, seen, strict=True))}
        taken = [place.get(lane // self.heads, (-1, 0)) for lane in range(len(room))]
        held = [count if lane in reads else self.room[lane] for lane, count in enumerate(self.count)]
        count = [count + new if lane in reads else count for lane, count in enumerate(self.count)]
        begin = [0, *accumulate(room)]
        lines = self._table([
            self.start, [*held, 0], begin, [*room, spare], [*(at for at, _ in taken), -1],
            [*(first for _, first in taken), 0], [*count, 0],
        ])  # fmt: skip
        pools = fused.grow(self.bare(), keys, values, lines, max(*room, spare), begin[-1] + spare)
        self._replace(pools, count, room)
        self._tabled = self.start[:-1], list(count), (lines[2], lines[6, :-1])

    def _replace(self, pools: tuple[Tensor, Tensor, Tensor, Tensor], count: list[int], room: list[int]) -> None:
        self.keys, self.values, self.positions, self.state = pools
        self.count, self.room = count, room
        self._laid_out()

    def _next(self, lanes: list[int], new: int) -> Int[Tensor, "lane token"]:
        """The slots that the next tokens of these lanes will have; of single ones those of several steps at once."""
        if new > 1 or len(lanes) < len(self.count):
            return self._slots(lanes, new)
        taken = self._taken()
        if self._ahead is None or taken is None or taken >= self._ahead.slots.shape[1]:
            free = min(room - count for room, count in zip(self.room, self.count, strict=True))
            slots, taken = self._slots(lanes, free), 0
            starts = self._table([self.start])[0]
            used = (slots - starts[:-1, None] + 1).T.contiguous().to(torch.int32)  # of each token, as kernels take it
            self._ahead = _Ahead(list(self.count), starts, slots, used)
        return self._ahead.slots[:, taken : taken + 1]

    def _slots(self, lanes: list[int], new: int) -> Int[Tensor, "lane token"]:
        ends = self._table([[self.start[lane] + self.count[lane] for lane in lanes]])[0]
        return ends[:, None] + torch.arange(new, device=ends.device)

    def _grow(self, room: list[int], seen: dict[int, int]) -> None:
        """Reserve so many slots for each lane, which are no fewer than before."""
        old, before, spare = self.start, self.room, len(self.positions) - self.start[-1]
        start = [0, *accumulate(room)]
        moved: Tensor | None = None  # to where each slot goes; None: the first so many of each lane
        even = len(set(before)) == len(set(room)) == 1
        if not even:
            moved = torch.cat([
                torch.arange(first, first + held) for first, held in zip(start[:-1], before, strict=True)
            ])  # fmt: skip
            moved = moved.to(self.keys.device, non_blocking=True)
        pools = []
        for held in self.tensors():
            axis = held.ndim - 1 if held is self.state else 0
            shape = list(held.shape)
            shape[axis] = start[-1] + spare
            pool = held.new_zeros(shape) if held is self.state or spare else held.new_empty(shape)
            if moved is None:
                lanes = (len(room), room[0], *shape[1:]) if axis == 0 else (shape[0], len(room), room[0])
                pool.narrow(axis, 0, start[-1]).view(lanes).narrow(axis + 1, 0, before[0]).copy_(
                    held.narrow(axis, 0, old[-1]).view(*lanes[: axis + 1], before[0], *lanes[axis + 2 :])
                )
            else:
                pool.index_copy_(axis, moved, held.narrow(axis, 0, old[-1]))
            pools.append(pool)
        keys, values, positions, state = pools
        self._replace((keys, values, positions, state), self.count, room)  # at once: all were made
        self._number(seen, before, spare)

    def _number(self, seen: dict[int, int], before: list[int], spare: int) -> None:
        """Give free slots the positions of the tokens that will come to them."""
        if spare:
            self.positions[-spare:] = -1
        lanes = [lane for lane in self.lanes(list(seen)) if self.room[lane] > before[lane]]
        if not lanes:
            return
        if (run := self.whole(lanes)) is not None and len(set(seen.values())) == 1:
            first, free = next(iter(seen.values())), self.room[lanes[0]] - self.count[lanes[0]]
            run.view(self.positions, self.count[lanes[0]], free).copy_(
                torch.arange(first, first + free, device=self.positions.device).expand(len(lanes), -1)
            )
            return
        free = max(self.room[lane] - self.count[lane] for lane in lanes)
        numbers = [[self.start[i] + self.count[i] for i in lanes], [seen[i // self.heads] for i in lanes]]
        numbers.append([self.room[i] - self.count[i] for i in lanes])
        ends, firsts, frees = self._table(numbers)
        ahead = torch.arange(free, device=ends.device).minimum(frees[:, None] - 1)  # the shorter write their last twice
        self.positions[ends[:, None] + ahead] = (firsts[:, None] + ahead).to(torch.int32)

    def compact(
        self, rows: Sequence[int], kept: Bool[Tensor, "lane slot"], stay: Int[Tensor, " lane"], count: list[int]
    ) -> None:
        """Only these slots of these rows stay, `stay` of each of their lanes: `count` of all lanes."""
        self._replace(self._compacted(rows, kept, stay, sum(count)), count, list(count))

    def compact_blindly(
        self, rows: Sequence[int], kept: Bool[Tensor, "lane slot"], stay: Int[Tensor, " lane"], totals: dict[int, int],
        numbers: Later, refusal: NammError,
    ) -> None:  # fmt: skip
        """The same, where the host knows no more than the total of each of these rows before `numbers` arrive.

        These are `stay`, and marks of scores that are no numbers, of which `refusal` is the error.
        """
        heads = self.heads
        held = [sum(self.count[row * heads : (row + 1) * heads]) for row in range(len(self.count) // heads)]
        every = [totals.get(row, number) for row, number in enumerate(held)]
        pools = self._compacted(rows, kept, stay, sum(every))
        self._coming = _Coming(numbers, self.lanes(rows), refusal, every, list(self.count))
        self.keys, self.values, self.positions, self.state = pools
        for name in _PLACES:
            del self.__dict__[name]

    def doubt(self, rows: Sequence[int], numbers: Later, refusal: NammError) -> None:
        """What these rows keep is known, but not yet whether the scores were numbers."""
        self._coming = _Coming(numbers, self.lanes(rows), refusal, [], None)

    def _compacted(
        self, rows: Sequence[int], kept: Bool[Tensor, "lane slot"], stay: Int[Tensor, " lane"], total: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        place = {lane: at for at, lane in enumerate(self.lanes(rows))}
        mine = self.constant([place.get(lane, -1) for lane in range(len(self.count))])
        spare = len(self.positions) - self.start[-1]
        whole = self.ragged(range(len(self.count) // self.heads))
        return fused.compact(whole, kept, stay, mine, total + spare)

    def keep(self, index: Int[Tensor, " kept"], count: list[int]) -> None:
        """Only the slots of `index` stay, `count` of each lane; exactly as large."""
        if spare := len(self.positions) - self.start[-1]:
            index = torch.cat([index, torch.arange(self.start[-1], self.start[-1] + spare, device=index.device)])
        keys, values, positions = (t.index_select(0, index) for t in self.tensors()[:3])
        self._replace((keys, values, positions, self.state.index_select(1, index)), count, list(count))

    def trim(self) -> None:
        """Give back the free slots that appending leaves."""
        if self.count != self.room:
            self.keep(self.used(range(len(self.count))), list(self.count))

    def used(self, lanes: Sequence[int]) -> Int[Tensor, " slot"]:
        """The slots in use of these lanes, one after another."""
        ranges = [torch.arange(self.start[lane], self.start[lane] + self.count[lane]) for lane in lanes]
        return torch.cat(ranges).to(self.keys.device)


_PLACES = ("count", "room", "start")


@dataclass(frozen=True)
class _Coming:
    """What the device has yet to tell of an update.

    Attributes:
        numbers: slots that stay in each of these lanes, then marks of scores that are no numbers.
        refusal: the error of such.
        totals: slots of each row.
        count: of all lanes, but for these; None if all were known.
    """

    numbers: Later
    lanes: list[int]
    refusal: NammError
    totals: list[int]
    count: list[int] | None


@dataclass(frozen=True)
class Held:
    """What lanes hold, right-aligned: position -1, state 0 and `empty` where a lane has no slot; None if all have."""

    keys: Float[Tensor, "lane slot dim"]
    positions: Int[Tensor, "lane slot"]
    state: Float[Tensor, "lane channel slot"]
    empty: Bool[Tensor, "lane slot"] | None


@dataclass(frozen=True)
class _Ahead:
    """Where the next tokens that come one by one to every lane will be, and how many slots each lane then uses.

    Attributes:
        counts: slots in use before the first of them.
    """

    counts: list[int]
    starts: Int[Tensor, " end"]
    slots: Int[Tensor, "lane token"]
    used: Int[Tensor, "token lane"]


class Part:
    """Lanes side by side that hold equally many slots: views of their slots.

    Attributes:
        lanes: which they are of those that were asked for.
        empty: which slots hold nothing; None if all hold something.
    """

    empty: Bool[Tensor, "lane slot"] | None = None

    def __init__(self, store: Store, lanes: slice, first: int, count: int, skipped: int = 0) -> None:
        self.store, self.lanes, self.count = store, lanes, count
        self._first, self._skipped = first, skipped

    def cut(self, first: int, stop: int) -> Part:
        """Of these slots those from the `first` one on, before `stop`."""
        return Part(self.store, self.lanes, self._first, stop - first, self._skipped + first)

    def view(self, pool: Tensor, first: int, count: int) -> Tensor:
        """So many slots of each lane from the `first` one on: `[lane, slot, ..]`, or of the state
        `[lane, channel, slot]`."""
        store, lanes = self.store, self.lanes.stop - self.lanes.start
        room, start = store.room[self._first], store.start[self._first] + self._skipped + first
        if pool is store.state:
            return pool.as_strided((lanes, pool.shape[0], count), (room, pool.shape[1], 1), start)
        if pool.ndim == 1:
            return pool.as_strided((lanes, count), (room, 1), start)
        dim = pool.shape[1]
        return pool.as_strided((lanes, count, dim), (room * dim, dim, 1), start * dim)

    @property
    def keys(self) -> Float[Tensor, "lane slot dim"]:
        return self.view(self.store.keys, 0, self.count)

    @property
    def values(self) -> Float[Tensor, "lane slot value_dim"]:
        return self.view(self.store.values, 0, self.count)

    @property
    def positions(self) -> Int[Tensor, "lane slot"]:
        return self.view(self.store.positions, 0, self.count)

    @property
    def state(self) -> Float[Tensor, "lane channel slot"]:
        return self.view(self.store.state, 0, self.count)

    def write(self, state: Float[Tensor, "lane channel slot"]) -> None:
        """What the policy observed of the oldest slots, as many as there are."""
        self.view(self.store.state, 0, state.shape[-1]).copy_(state)

    @property
    def index(self) -> Int[Tensor, "lane slot"]:
        """Place in the pool of each slot."""
        slots = torch.arange(len(self.store.positions), device=self.store.keys.device)
        return self.view(slots, 0, self.count)


class Padded(Part):
    """Lanes that hold unequal numbers of slots, in one tensor: copies, filled up at the old end."""

    def __init__(self, store: Store, lanes: slice, index: Tensor, empty: Bool[Tensor, "lane slot"]) -> None:
        super().__init__(store, lanes, 0, index.shape[1])
        self.where, self._empty, self.empty = index, empty, empty

    def cut(self, first: int, stop: int) -> Padded:
        return Padded(self.store, self.lanes, self.where[:, first:stop], self._empty[:, first:stop])

    @property
    def keys(self) -> Float[Tensor, "lane slot dim"]:
        return self.store.keys[self.index]

    @property
    def values(self) -> Float[Tensor, "lane slot value_dim"]:
        return self.store.values[self.index]

    @property
    def positions(self) -> Int[Tensor, "lane slot"]:
        return self.store.positions[self.index].masked_fill_(self._empty, -1)

    @property
    def state(self) -> Float[Tensor, "lane channel slot"]:
        return self.store.state[:, self.index].transpose(0, 1).masked_fill_(self._empty[:, None], 0)

    def write(self, state: Float[Tensor, "lane channel slot"]) -> None:
        where = self.where[:, : state.shape[-1]]
        where = where.masked_fill(self._empty[:, : state.shape[-1]], self.store.start[-1])  # the spare slot
        self.store.state[:, where] = state.transpose(0, 1).to(self.store.state.dtype)

    @property
    def index(self) -> Int[Tensor, "lane slot"]:
        return self.where


def pads(device: torch.device) -> bool:
    """Whether lanes of unequal length are computed in one padded tensor, not one after another: where launches cost."""
    return device.type != "cpu"
