"""Conversations that are read on together are each what they would be alone."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import torch

import namm
from namm.errors import ModelError
from namm.memory.attach import find_decoder
from namm.memory.batch import can_join, together
from namm.memory.cache import MemoryCache, make_plan
from namm.memory.rehearsal import rehearsing
from tests.memory.test_rehearsal import memory
from tests.zoo import causal_model, ids

LENGTHS = (3, 40, 67)
HALF = namm.Budget(fraction=0.5)


def plan(policy):
    return make_plan(policy, HALF, 32)


CASES = [
    *[("llama", policy) for policy in ("h2o", "observed-max", "rehearses", "mixed")],
    *[(name, "mixed") for name in ("gpt2", "qwen3", "gpt_neox")],
]


@pytest.mark.parametrize(("name", "policy"), CASES)
@torch.no_grad()
def test_together_is_each_alone(name, policy):
    model = causal_model(name)
    kinds = {"rehearses": [memory()] * 3, "mixed": ["h2o", memory(), "full"]}.get(policy, [policy] * 3)
    texts = [ids(1, length + 80)[:, row:] for row, length in enumerate(LENGTHS)]
    alone = [MemoryCache.planned(model.config, (plan(kind),)) for kind in kinds]
    joint = [MemoryCache.planned(model.config, (plan(kind),)) for kind in kinds]
    with ExitStack() as stack:
        stack.enter_context(rehearsing(find_decoder(model)))
        for caches in (alone, joint):
            for text, length, cache in zip(texts, LENGTHS, caches, strict=True):
                model(text[:, :length], past_key_values=cache)
        for step in range(70):
            new = [text[:, length + step : length + step + 1] for text, length in zip(texts, LENGTHS, strict=True)]
            each = [model(token, past_key_values=cache).logits for token, cache in zip(new, alone, strict=True)]
            places = torch.tensor([[cache.get_seq_length()] for cache in joint])
            with together(joint) as batch:
                both = model(torch.cat(new), past_key_values=batch, position_ids=places).logits
            torch.testing.assert_close(both, torch.cat(each), atol=2e-5, rtol=1e-4)
    for one, other in zip(alone, joint, strict=True):
        assert one.get_seq_length() == other.get_seq_length()
        assert one.memory().kept == other.memory().kept
        assert [one.kept_positions(i) for i in (0, 1)] == [other.kept_positions(i) for i in (0, 1)]


def test_what_cannot_be_a_row():
    model = causal_model("gemma3")  # a layer with a sliding window
    cache = MemoryCache(model.config, "h2o", HALF, 32)
    model(ids(1, 5), past_key_values=cache)
    assert not can_join(cache)
    with pytest.raises(ModelError, match="caches of one row"), together([cache, cache]):
        pass
    fresh = MemoryCache(causal_model("llama").config, "h2o", HALF, 32)
    assert not can_join(fresh)
