"""What is shared between memories changes nothing: started from a prefix, in a row among others, forked."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

import namm
from namm.errors import ModelError
from namm.memory.cache import MemoryCache
from namm.memory.layer import MemoryLayer
from namm.memory.plan import Plan
from namm.memory.prefix import Prefix
from namm.policies import H2O, KeepAll, KVzip, ObservedMax, StreamingLLM
from tests.zoo import causal_model

PLANS = (
    Plan(H2O(), namm.Budget(fraction=0.25), 32, last=80),
    Plan(ObservedMax(), namm.Budget(tokens=9), 32, last=80),
    Plan(KeepAll(), None, 32),
    Plan(StreamingLLM(), namm.Budget(fraction=0.5), 32),
)


@torch.no_grad()
def alone(model, ids, plan):
    cache = MemoryCache.planned(model.config, (plan,))
    return model(ids, past_key_values=cache).logits, cache


@pytest.mark.parametrize("name", ["llama", "gemma3"])
@torch.no_grad()
def test_a_memory_started_from_a_prefix_is_the_memory_that_read_it(name):
    model = causal_model(name)
    ids = torch.randint(5, 90, (1, 100), generator=torch.Generator().manual_seed(3))
    prefix = Prefix.of(model, ids[:, :32])
    for plan in PLANS:
        whole, cache = alone(model, ids, plan)
        started = prefix.start((plan,))
        rest = model(ids[:, 32:], past_key_values=started).logits
        torch.testing.assert_close(rest, whole[:, 32:], atol=1e-4, rtol=1e-4)
        assert started.memory().kept == cache.memory().kept
        assert started.memory().updates == cache.memory().updates


@pytest.mark.parametrize("name", ["llama", "gemma3"])
@torch.no_grad()
def test_each_row_follows_its_own_plan(name):
    model = causal_model(name)
    ids = torch.randint(5, 90, (1, 100), generator=torch.Generator().manual_seed(4))
    started = Prefix.of(model, ids[:, :32]).start(PLANS)
    logits = model(ids[:, 32:].expand(len(PLANS), -1), past_key_values=started).logits
    for row, plan in enumerate(PLANS):
        whole, cache = alone(model, ids, plan)
        torch.testing.assert_close(logits[row], whole[0, 32:], atol=1e-4, rtol=1e-4)
        assert [layer[row] for layer in started.memory().kept if layer] == [
            layer[0] for layer in cache.memory().kept if layer
        ]


@torch.no_grad()
def test_after_its_last_update_a_memory_forgets_nothing():
    model = causal_model("llama")
    ids = torch.randint(5, 90, (1, 160), generator=torch.Generator().manual_seed(5))
    _, cache = alone(model, ids, Plan(StreamingLLM(), namm.Budget(fraction=0.25), 32, last=80))
    assert set(cache.memory().updates) == {3}  # at 32, 64 and 80
    assert {count for layer in cache.memory().kept for count in layer[0]} == {20 + 80}


@torch.no_grad()
def test_a_fork_goes_its_own_way():
    model = causal_model("llama")
    generator = torch.Generator().manual_seed(6)
    text, one, two = (torch.randint(5, 90, (1, n), generator=generator) for n in (80, 9, 40))
    plan = Plan(H2O(), namm.Budget(fraction=0.25), 32)
    _, cache = alone(model, text, plan)
    before = cache.memory()
    for question in (one, two):
        expected, _ = alone(model, torch.cat([text, question], 1), plan)
        answer = model(question, past_key_values=cache.fork()).logits
        torch.testing.assert_close(answer, expected[:, 80:], atol=1e-4, rtol=1e-4)
    assert cache.memory().kept == before.kept
    assert cache.memory().bytes_held == before.bytes_held


def test_a_cache_goes_when_nobody_holds_it() -> None:
    """By reference count alone: the collector may come late, and a cache is what fills a GPU."""
    model = causal_model("llama")
    prefix = Prefix.of(model, torch.arange(5, 37)[None])
    gc.collect()
    gc.disable()
    try:
        cache = prefix.start(PLANS)
        fork = cache.fork()
        alive = [weakref.ref(c.layers[0].sequences[0]) for c in (cache, fork)]
        alive.append(weakref.ref(prefix))
        del cache, fork, prefix
        assert [one() for one in alive] == [None] * 3
    finally:
        gc.enable()


def test_reading_a_prefix_leaves_nothing_to_the_collector() -> None:
    model, policy = causal_model("llama"), KVzip()

    def layers() -> int:
        return sum(issubclass(type(found), MemoryLayer) for found in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        before = layers()
        prefix = Prefix.of(model, torch.arange(5, 37)[None], [policy.rehearsal])
        prefix.start((Plan(policy, namm.Budget(fraction=0.5), 32),))
        assert layers() == before
    finally:
        gc.enable()


def test_an_update_inside_the_prefix_is_refused():
    model = causal_model("llama")
    prefix = Prefix.of(model, torch.arange(5, 69)[None])
    with pytest.raises(ModelError, match=r"first update is not before token 64, .*; got one at 32"):
        prefix.start(PLANS[:1])


def test_as_many_rows_as_plans():
    model = causal_model("llama")
    cache = MemoryCache.planned(model.config, PLANS)
    with pytest.raises(ModelError, match="batch of 4 rows, one for each plan; got 2 rows"):
        model(torch.arange(5, 25)[None].expand(2, -1), past_key_values=cache)
