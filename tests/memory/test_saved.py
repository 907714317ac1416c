"""A memory that was put to disk goes on as if it had not been, and nothing but such a memory comes back."""

from __future__ import annotations

import pytest
import torch

import namm
from namm.memory.cache import MemoryCache
from tests.zoo import CAUSAL, causal_model, ids

HALF = namm.Budget(fraction=0.5)


@pytest.mark.parametrize("name", CAUSAL)
def test_saved_and_loaded_it_goes_on_to_the_bit(name, tmp_path):
    model, text = causal_model(name), ids(1, 150)
    cache = MemoryCache(model.config, "h2o", HALF, 32)
    with torch.no_grad():
        model(text[:, :100], past_key_values=cache)
    path = cache.save(tmp_path / "text.safetensors", model)
    loaded = MemoryCache.load(path, model, "h2o", HALF, 32)
    options = {"max_new_tokens": 40, "return_dict_in_generate": True, "output_logits": True, "do_sample": False}
    kept_on = model.generate(text, past_key_values=cache, **options)
    resumed = model.generate(text, past_key_values=loaded, **options)
    assert torch.equal(torch.stack(kept_on.logits), torch.stack(resumed.logits))
    assert loaded.memory().kept == cache.memory().kept
