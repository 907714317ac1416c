"""What goes wrong on the way: memory that runs out, kernels that are not there. Nothing is silently wrong after it."""

import importlib.util
import logging

import pytest
import torch

import namm
from namm.errors import ModelError, ScoreError
from namm.kernels import fused
from namm.memory import store as storage
from namm.memory.later import Later
from namm.memory.store import Store
from tests.zoo import causal_model, ids

QUARTER = namm.Budget(fraction=0.25)
CARD = torch.device("cuda", 0)


def full(*arguments: object, **options: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory (a stand-in)")


@pytest.mark.parametrize("operation", ["keep", "append"])
@torch.no_grad()
def test_a_cache_says_that_memory_ran_out_in_the_middle(monkeypatch: pytest.MonkeyPatch, operation: str) -> None:
    model, text = causal_model("llama"), ids(1, 64)
    with namm.attach(model, "h2o", QUARTER, 16) as handle:
        cache = model(text[:, :20]).past_key_values
        before = handle.kept_positions(0), handle.kept_positions(1)
        with monkeypatch.context() as patch:
            patch.setattr(Store, operation, full)
            with pytest.raises(torch.OutOfMemoryError):
                model(text[:, 20:40], past_key_values=cache)
        stores = [layer.sequences[0].store for layer in cache.layers]
        assert all(len(store.keys) == store.start[-1] == len(store.positions) for store in stores)
        assert operation == "keep" or (handle.kept_positions(0), handle.kept_positions(1)) == before
        with pytest.raises(ModelError, match="failed in the middle"):
            cache.fork()
        with pytest.raises(ModelError, match=r"layer 0, which failed in the middle.*prefill_chunk_size"):
            model(text[:, 40:], past_key_values=cache)
    with namm.attach(model, "h2o", QUARTER, 16):
        model(text)  # a new memory reads


def store_of(tokens: int) -> Store:
    keys = torch.randn(2, 2, 5, 4)
    store = Store.empty(2, keys, keys, 1, torch.float32)
    store.append([0, 1], keys, keys, [0, 0])
    for seen in range(5, tokens):
        store.append([0, 1], keys[:, :, :1], keys[:, :, :1], [seen, seen])
    return store


def contents(store: Store) -> list[torch.Tensor]:
    """To the bit: free slots hold whatever was there, which may be no number."""
    return [tensor.clone().view(torch.uint8) for tensor in store.tensors()]


@pytest.mark.parametrize("fails", [1, 2, 3, 4])
def test_a_store_changes_at_once_or_not_at_all(monkeypatch: pytest.MonkeyPatch, fails: int) -> None:
    """Whichever of the four new pools there is no room for."""
    store = store_of(7)
    before, places = contents(store), (list(store.count), list(store.room), list(store.start))
    calls = 0

    def counted(real):
        def run(*arguments, **options):
            nonlocal calls
            calls += 1
            return full() if calls == fails else real(*arguments, **options)

        return run

    kept = torch.cat([torch.arange(start, start + 2) for start in store.start[:-1]])
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "index_select", counted(torch.Tensor.index_select))
        with pytest.raises(torch.OutOfMemoryError):
            store.keep(kept, [2] * 4)
    calls = 0
    with monkeypatch.context() as patch:
        for name in ("new_empty", "new_zeros"):
            patch.setattr(torch.Tensor, name, counted(getattr(torch.Tensor, name)))
        with pytest.raises(torch.OutOfMemoryError):
            store.append([0, 1], torch.randn(2, 2, 40, 4), torch.randn(2, 2, 40, 4), [7, 7])
    assert (store.count, store.room, store.start) == places
    assert all(torch.equal(old, new) for old, new in zip(before, contents(store), strict=True))
    store.keep(kept, [2] * 4)
    assert store.count == [2] * 4


class Event:
    """Of a device that is behind until somebody waits."""

    def __init__(self) -> None:
        self.over = False

    def query(self) -> bool:
        return self.over

    def synchronize(self) -> None:
        self.over = True


def test_strange_scores_are_told_when_the_device_has_told_of_them() -> None:
    store, event = store_of(5), Event()
    error = ScoreError("finite scores", "NaN", "Check.")
    store.doubt([0, 1], Later(torch.tensor([5, 5, 5, 5, 0, 0, 1, 0]), event), error)
    one = torch.randn(2, 2, 1, 4)
    store.append([0, 1], one, one, [5, 5])
    assert not event.over  # nothing was waited for
    with pytest.raises(ScoreError, match="NaN"):
        store.settle()
    with pytest.raises(ScoreError):
        store.append([0, 1], one, one, [6, 6])


def test_counts_are_waited_for_by_who_asks() -> None:
    store, event = store_of(5), Event()
    numbers, refusal = Later(torch.tensor([3, 2, 0, 0]), event), ScoreError("finite scores", "NaN", "Check.")
    store._coming = storage._Coming(numbers, [0, 1], refusal, [5, 10], [5, 5, 5, 5])
    for name in storage._PLACES:
        del store.__dict__[name]
    assert store.nbytes(0) > 0
    assert not event.over
    assert store.count == [3, 2, 5, 5]
    assert event.over
    assert store.start == [0, 3, 5, 10, 15]


@pytest.fixture
def _fresh():
    for cached in (fused.capable, fused._fits):
        cached.cache_clear()
    yield
    for cached in (fused.capable, fused._fits):
        cached.cache_clear()


@pytest.mark.usefixtures("_fresh")
def test_where_kernels_do_not_serve_the_log_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert not fused.capable(torch.device("cpu"))
    assert not caplog.records  # there is nothing to miss
    find = importlib.util.find_spec

    def without(name: str, *more: str) -> object:
        return None if name == "triton" else find(name, *more)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    with caplog.at_level(logging.WARNING):
        assert not fused.capable(CARD)
        assert not fused.capable(CARD)
    assert [record.message.count("Triton is not installed") for record in caplog.records] == [1]
    fused.capable.cache_clear()
    caplog.clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: object())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "an old card")
    assert not fused.capable(CARD)
    assert "an old card is older than compute capability 8.0" in caplog.text
    fused.capable.cache_clear()
    caplog.clear()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setenv("NAMM_KERNELS", "torch")
    assert not fused.capable(CARD)
    fused.capable.cache_clear()
    monkeypatch.delenv("NAMM_KERNELS")
    assert fused.capable(CARD)
    assert not caplog.records


@pytest.mark.usefixtures("_fresh")
@pytest.mark.parametrize(
    ("dtype", "dims", "group", "served"),
    [
        (torch.bfloat16, 256, 4, True), (torch.bfloat16, 288, 4, False), (torch.float32, 64, 7, True),
        (torch.float32, 128, 1, False), (torch.float64, 64, 1, False), (torch.float16, 128, 71, False),
    ],
)  # fmt: skip
def test_kernels_say_what_they_do_not_serve(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, dtype, dims, group, served
) -> None:
    monkeypatch.setattr(fused, "capable", lambda device: True)
    keys = torch.empty(3, dims, dtype=dtype)
    with caplog.at_level(logging.WARNING):
        assert fused.serves(keys, keys[:, :8], group) is served
        fused.serves(keys, keys, group)
    assert len(caplog.records) == (not served)
    assert served or f"keys of {dims} numbers in {dtype}" in caplog.text
