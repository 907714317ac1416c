"""The pool of a layer against lists of slots, and lanes in one padded tensor against lanes one after another."""

from __future__ import annotations

import pytest
import torch

import namm
from namm.memory import store as storage
from namm.memory.store import SLACK, Part, Store
from namm.policies import SnapKV
from tests.memory.test_equivalence import INTERVAL, random_namm
from tests.zoo import causal_model, ids

HEADS, DIM, VALUE = 2, 4, 3


class Plain:
    """Slots of each lane as a list of (key, value, position, state)."""

    def __init__(self, rows: int) -> None:
        self.lanes: list[list[tuple[torch.Tensor, torch.Tensor, int, torch.Tensor]]] = [[] for _ in range(rows * HEADS)]

    def append(self, rows, keys, values, seen):
        for place, row in enumerate(rows):
            for head in range(HEADS):
                for t in range(keys.shape[2]):
                    slot = keys[place, head, t], values[place, head, t], seen[place] + t, torch.zeros(2)
                    self.lanes[row * HEADS + head].append(slot)


def same(store: Store, plain: Plain) -> None:
    assert store.count == [len(lane) for lane in plain.lanes]
    rows = list(range(len(plain.lanes) // HEADS))
    parts = [*store.runs(lanes := store.lanes(rows), len(lanes)), store.padded(lanes)]
    for part in parts:
        for at, lane in enumerate(plain.lanes[part.lanes]):
            n = len(lane)
            assert torch.equal(part.keys[at, part.count - n :], torch.stack([slot[0] for slot in lane]))
            assert torch.equal(part.values[at, part.count - n :], torch.stack([slot[1] for slot in lane]))
            assert part.positions[at].tolist() == [-1] * (part.count - n) + [slot[2] for slot in lane]
            assert torch.equal(part.state[at, :, part.count - n :], torch.stack([slot[3] for slot in lane], 1))
            if part.empty is not None:
                assert part.empty[at].tolist() == [True] * (part.count - n) + [False] * n


@pytest.mark.parametrize("pads", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_whatever_is_done_to_it_a_lane_is_a_list_of_slots(monkeypatch, pads: bool, seed: int) -> None:
    monkeypatch.setattr(storage, "pads", lambda device: pads)
    g = torch.Generator().manual_seed(seed)
    rows = 3
    store = Store.empty(rows, torch.empty(rows, HEADS, 0, DIM), torch.empty(rows, HEADS, 0, VALUE), 2, torch.float32)
    plain, seen = Plain(rows), [0] * rows
    for step in range(120):
        some = [0, 1, 2] if step % 7 else [0, 2]
        new = 1 if step % 10 else int(torch.randint(2, 6, (), generator=g))
        keys, values = (torch.randn(len(some), HEADS, new, d, generator=g) for d in (DIM, VALUE))
        store.append(some, keys, values, [seen[row] for row in some])
        plain.append(some, keys, values, [seen[row] for row in some])
        for row in some:
            seen[row] += new
        assert all(0 <= room - count < SLACK + 5 for room, count in zip(store.room, store.count, strict=True))
        if step % 30 == 3:
            for part in store.parts(range(rows)):
                observed = torch.randn(part.state.shape, generator=g)
                part.write(observed)
                for at, lane in enumerate(plain.lanes[part.lanes]):
                    first = part.count - len(lane)
                    lane[:] = [(k, v, p, observed[at, :, first + i]) for i, (k, v, p, _) in enumerate(lane)]
        if step % 40 == 20:  # ragged, one row apart
            kept = [torch.rand(len(lane), generator=g) < 0.6 for lane in plain.lanes]
            index = torch.cat([store.used([lane])[mask] for lane, mask in enumerate(kept)])
            store.keep(index, [int(mask.sum()) for mask in kept])
            plain.lanes = [
                [slot for slot, stays in zip(lane, mask, strict=True) if stays]
                for lane, mask in zip(plain.lanes, kept, strict=True)
            ]
        if step % 50 == 40:
            store.trim()
            assert store.room == store.count
            spare = int(pads)
            assert len(store.positions) == sum(store.count) + spare
        if step % 60 == 50:
            store = Store.of([(store, 2), (store, 0), (store, 1)])
            plain.lanes = plain.lanes[4:6] + plain.lanes[:4]
            seen = [seen[2], seen[0], seen[1]]
        if all(plain.lanes):
            same(store, plain)
    assert store.nbytes() == sum(store.nbytes(row) for row in range(rows)) + pads * store.nbytes() // len(
        store.positions
    )


def test_lanes_that_hold_equally_many_slots_are_views() -> None:
    store = Store.empty(2, torch.empty(2, HEADS, 0, DIM), torch.empty(2, HEADS, 0, VALUE), 1, torch.float32)
    for seen in range(3):
        store.append([0, 1], torch.randn(2, HEADS, 1, DIM), torch.randn(2, HEADS, 1, VALUE), [seen] * 2)
    (part,) = store.parts([0, 1])
    assert type(part) is Part
    assert part.keys.untyped_storage().data_ptr() == store.keys.untyped_storage().data_ptr()
    assert part.keys.shape == (4, 3, DIM)


def test_kernels_are_told_where_lanes_are_in_contiguous_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on an accelerator: `varlen_attn` refuses others, and Triton would misread them."""
    monkeypatch.setattr(storage, "pads", lambda device: True)
    store = Store.empty(2, torch.empty(2, HEADS, 0, DIM), torch.empty(2, HEADS, 0, VALUE), 1, torch.float32)
    for seen, new in enumerate([5, 1, 1, 1], start=0):
        store.append([0, 1], torch.randn(2, HEADS, new, DIM), torch.randn(2, HEADS, new, VALUE), [seen + 4] * 2)
        lanes = store.ragged([0, 1])
        assert lanes.table is not None
        starts, used = lanes.table
        assert starts.is_contiguous()
        assert used.is_contiguous()
        assert (starts.dtype, used.dtype) == (torch.int32, torch.int32)
        assert starts.tolist() == store.start
        assert used.tolist() == lanes.counts == [5 + seen] * 4


LAYER = namm.Budget(fraction=0.4, per="layer")
CASES = [
    (random_namm(), LAYER), (random_namm(), None), (SnapKV(), LAYER), ("requery", LAYER), ("kvzip", LAYER),
    ("h2o", namm.Budget(fraction=0.4, per="model")), ("builtin:universal", LAYER),
]  # fmt: skip


@pytest.mark.parametrize("name", ["llama", "gemma2"])
@pytest.mark.parametrize(("policy", "selection"), CASES, ids=lambda x: x if isinstance(x, str) else type(x).__name__)
@torch.no_grad()
def test_padded_lanes_are_lanes_one_by_one(monkeypatch, name: str, policy, selection) -> None:
    """As on an accelerator, where launches cost more than what is computed for nothing."""
    model, text = causal_model(name), ids(2, 150)
    mask = torch.ones_like(text)
    mask[1, :21] = 0
    read = []
    for pads in (False, True):
        monkeypatch.setattr(storage, "pads", lambda device, pads=pads: pads)
        with namm.attach(model, policy, selection, INTERVAL) as handle:
            out = model(text[:, :100], attention_mask=mask[:, :100])
            logits = [out.logits[:, 21:]]
            for t in range(100, 150):
                step = text[:, t : t + 1], mask[:, : t + 1]
                logits.append(model(step[0], attention_mask=step[1], past_key_values=handle.cache).logits)
            kept = handle.memory().kept
            read.append((torch.cat(logits, 1), [handle.kept_positions(i) for i, held in enumerate(kept) if held], kept))
    assert read[0][1:] == read[1][1:]
    torch.testing.assert_close(read[0][0], read[1][0], atol=1e-4, rtol=1e-4)
    assert name != "llama" or any(len(set(row)) > 1 for layer in read[0][2] for row in layer)
