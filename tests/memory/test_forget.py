"""`MemoryCache.forget`: a decision between two updates, when a text has been read."""

import pytest
import torch

import namm
from namm import Budget, Threshold
from namm.compat import cache_in, passing
from namm.policies import H2O, TOVA, MemoryPolicy, NAMMPolicy, SnapKV
from tests.memory.dense import Diary, dense_logits
from tests.memory.test_equivalence import random_namm
from tests.zoo import causal_model, ids

INTERVAL, READ = 32, 75  # 75: between two updates, and between two hops
QUARTER = Budget(fraction=0.25)
MEMORIES: list[tuple[MemoryPolicy | str, object]] = [
    (H2O(), QUARTER),
    (TOVA(), QUARTER),
    (SnapKV(), Budget(fraction=0.25, per="layer")),
    (NAMMPolicy(random_namm()), Budget(fraction=0.25, per="layer")),
    (NAMMPolicy(random_namm()), Threshold(0.0)),
    ("requery", Budget(fraction=0.25, per="model")),
    ("builtin:universal", QUARTER),
]


@torch.no_grad()
def read(model, memory, selection, text, pieces):
    with namm.attach(model, memory, selection, INTERVAL) as handle:
        cache, start, logits = None, 0, []
        for size in pieces:
            out = model(text[:, start : start + size], **passing(model, cache))
            logits.append(out.logits)
            cache, start = cache_in(out), start + size
            if start == READ:
                cache.forget()
                report = handle.memory()
        kept = [cache.kept_positions(i) for i, rows in enumerate(report.kept) if rows]
        return torch.cat(logits, 1), kept, report


@pytest.mark.parametrize(("memory", "selection"), MEMORIES, ids=lambda x: getattr(x, "name", type(x).__name__))
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_what_is_held_meets_the_budget_however_the_text_came(name: str, memory, selection) -> None:
    model, text = causal_model(name), ids(1, 150)
    whole, kept, report = read(model, memory, selection, text, (READ, 75))
    counts = [n for layer in report.kept for row in layer for n in row]
    if isinstance(selection, Budget):
        assert sum(counts) == len(counts) * selection.target(READ)
    for pieces in ((40, 35, 60, 15), (32, *[1] * 43, *[1] * 75)):
        again, same, _ = read(model, memory, selection, text, pieces)
        assert same == kept
        torch.testing.assert_close(again, whole, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("policy", "selection"), [m for m in MEMORIES if not isinstance(m[0], str)])
def test_afterwards_attention_is_dense_with_a_mask(policy: MemoryPolicy, selection: object) -> None:
    model, text, diary = causal_model("qwen3"), ids(1, 150), Diary()
    ours, _, _ = read(model, *diary.watch(policy, selection), text, (60, 15, 1, 74))
    assert [seen for seen, _ in diary.entries[0, 0]] == [32, 64, READ, 96, 128]
    torch.testing.assert_close(ours, dense_logits(model, diary, input_ids=text), atol=1e-4, rtol=0)


def test_twice_is_once() -> None:
    model = causal_model("llama")
    for memory in ("h2o", "requery", "builtin:universal"):
        with torch.no_grad(), namm.attach(model, memory, QUARTER, INTERVAL) as handle:
            model(ids(2, READ))
            handle.cache.forget()
            once = [handle.kept_positions(i) for i in range(2)]
            handle.cache.forget()
            assert [handle.kept_positions(i) for i in range(2)] == once


def test_a_cache_by_hand_and_one_without_tokens() -> None:
    model = causal_model("llama")
    cache = namm.MemoryCache(model.config, "requery", Budget(fraction=0.25, per="model"), INTERVAL)
    cache.forget()
    with torch.no_grad():
        for tokens in (64, READ - 64):  # without attach, layers decide together where a call ends
            model(ids(2, tokens), **passing(model, cache))
    before = cache.memory()
    cache.forget()
    after = cache.memory()
    heads = sum(len(row) for rows in after.kept for row in rows)
    assert before.slots > after.slots == heads * (READ // 4)


@pytest.mark.parametrize("memory", ["h2o", "requery", "builtin:universal"])
def test_a_text_read_in_inference_mode_is_decided_on_outside_of_it(memory: str) -> None:
    model, text = causal_model("llama"), ids(1, 150)
    whole, _, _ = read(model, memory, QUARTER, text, (READ, 75))
    expected = kept_after(model, memory, text)
    with namm.attach(model, memory, QUARTER, INTERVAL) as handle:
        with torch.inference_mode():
            model(text[:, :READ])
        handle.cache.forget()
        assert [handle.kept_positions(i) for i in range(2)] == expected
        with torch.no_grad():
            later = model(text[:, READ:], **passing(model, handle.cache)).logits
    torch.testing.assert_close(later, whole[:, READ:], atol=1e-4, rtol=0)


def kept_after(model, memory, text):
    with torch.no_grad(), namm.attach(model, memory, QUARTER, INTERVAL) as handle:
        model(text[:, :READ])
        handle.cache.forget()
        return [handle.kept_positions(i) for i in range(2)]


def test_what_cannot_decide_now_says_so() -> None:
    model = causal_model("llama")
    with torch.no_grad(), namm.attach(model, "kvzip", QUARTER, INTERVAL) as handle:
        model(ids(1, READ))
        before = handle.memory()
        with pytest.raises(namm.ModelError, match="a memory that reads once"):
            handle.cache.forget()
        assert handle.memory() == before
    with torch.no_grad(), namm.attach(model, "full") as handle:
        model(ids(1, READ))
        handle.cache.forget()
        assert {n for layer in handle.memory().kept for row in layer for n in row} == {READ}
