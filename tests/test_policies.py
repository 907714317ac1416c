"""Each policy scores what its paper says, on slots small enough to check by eye; and one matrix over all of them."""

import dataclasses

import pytest
import torch

import namm
from namm.policies import BASELINES, H2O, TOVA, KNorm, KVzip, ObservedMax, Random, SnapKV, StreamingLLM, View, resolve
from tests.zoo import causal_model, ids


def view(positions: list[int], state: torch.Tensor | None = None, target: int = 4, **more: object) -> View:
    slots = len(positions)
    given = {
        "state": torch.zeros(1, 1, 1, slots) if state is None else state[None, None],
        "positions": torch.tensor([[positions]]),
        "keys": torch.ones(1, 1, slots, 2),
        "seen": max(positions) + 1,
        "target": target,
        "rows": torch.tensor([0]),
        "layer": 0,
        "heads": torch.tensor([0]),
    }
    return View(**(given | more))


def order(scores: torch.Tensor) -> list[int]:
    return scores[0, 0].argsort(descending=True, stable=True).tolist()


def test_streaming_prefers_sinks_then_recency() -> None:
    assert order(StreamingLLM(sinks=2).score(view([0, 1, 5, 6, 9]))) == [0, 1, 4, 3, 2]


def test_h2o_accumulates_and_protects_a_recent_half() -> None:
    attention = torch.tensor([[0.9, 0.1, 0.0, 0.0], [0.5, 0.3, 0.2, 0.0], [0.1, 0.6, 0.2, 0.1]])
    policy = H2O()
    state = policy.observe(policy.observe(torch.zeros(1, 4), attention[:2]), attention[2:])
    torch.testing.assert_close(state[0], torch.tensor([1.5, 1.0, 0.4, 0.1]))
    assert order(policy.score(view([0, 1, 2, 3], state, target=2))) == [3, 0, 1, 2]
    assert order(policy.score(view([0, 1, 2, 3], state, target=1))) == [0, 1, 2, 3]


def test_observed_max_remembers_one_strong_look() -> None:
    policy = ObservedMax()
    state = policy.observe(torch.zeros(1, 3), torch.tensor([[0.1, 0.9, 0.0], [0.5, 0.1, 0.4]]))
    state = policy.observe(state, torch.tensor([[0.4, 0.0, 0.6]]))
    torch.testing.assert_close(state[0], torch.tensor([0.5, 0.9, 0.6]))


def test_kvzip_remembers_what_was_asked_when_the_text_was_read_again() -> None:
    policy = KVzip()
    state = policy.observe(torch.zeros(1, 3), torch.tensor([[0.1, 0.9, 0.0], [0.5, 0.1, 0.4]]))
    assert not state.any()
    state = policy.rehearse(policy.rehearse(state, torch.tensor([[0.1, 0.0, 0.3]])), torch.tensor([[0.0, 0.2, 0.1]]))
    torch.testing.assert_close(state[0], torch.tensor([0.1, 0.2, 0.3]))
    assert order(policy.score(view([0, 1, 2], state))) == [2, 1, 0]


def test_tova_looks_at_the_last_query_only() -> None:
    policy = TOVA()
    state = policy.observe(torch.ones(1, 3), torch.tensor([[0.9, 0.1, 0.0], [0.2, 0.3, 0.5]]))
    torch.testing.assert_close(state[0], torch.tensor([0.2, 0.3, 0.5]))


def test_snapkv_averages_the_last_window_and_pools() -> None:
    policy = SnapKV(kernel=3)
    attention = torch.rand(64, 50)
    whole = policy.observe(torch.zeros(2, 50), attention)
    parts = policy.observe(policy.observe(torch.zeros(2, 50), attention[:48]), attention[48:])
    torch.testing.assert_close(whole, parts)
    scores = policy.score(view(list(range(50)), whole))[0, 0]
    votes = attention[-32:].mean(0)
    torch.testing.assert_close(scores[5], votes[4:7].mean())
    assert bool((scores[-32:] > 1e30).all())


def test_knorm_keeps_short_keys() -> None:
    keys = torch.tensor([[[[3.0, 4.0], [0.1, 0.0], [1.0, 1.0]]]])
    assert order(KNorm().score(view([0, 1, 2], keys=keys))) == [1, 2, 0]


def test_random_priorities_last_for_life_and_differ_by_place() -> None:
    early = Random().score(view([0, 1, 2, 3, 4]))[0, 0]
    late = Random().score(view([1, 3, 90]))[0, 0]
    assert late[:2].tolist() == early[[1, 3]].tolist()
    assert Random(seed=1).score(view([0, 1, 2]))[0, 0].tolist() != early[:3].tolist()
    assert Random().score(view([0, 1, 2], layer=1))[0, 0].tolist() != early[:3].tolist()
    many = Random().score(view(list(range(20_000))))[0, 0]
    assert abs(float(many.mean()) - 0.5) < 0.01
    assert abs(float(many.std()) - 12**-0.5) < 0.01


@pytest.mark.parametrize("name", [n for n, kind in BASELINES.items() if n != "full" and not kind.whole])
@pytest.mark.parametrize("per", ["head", "layer", "model"])
def test_every_policy_meets_its_budget(name: str, per: str) -> None:
    model = causal_model("llama")
    budget = namm.Budget(fraction=0.25, per=per)
    with torch.no_grad(), namm.attach(model, name, budget, update_interval=32) as handle:
        model(ids(2, 128))
        report = handle.memory()
        layers = [handle.kept_positions(layer) for layer in (0, 1)]
    for rows in zip(*layers, strict=True):
        held = [sum(len(head) for head in row) for row in rows]
        assert sum(held) == 2 * 2 * 32 if per == "model" else held == [2 * 32] * 2
        assert all(head == sorted(set(head)) and head[-1] == 127 for row in rows for head in row)
    assert report.updates == [8, 8]
    assert repr(resolve(name))


def test_random_priorities_survive_ragged_heads() -> None:
    model = causal_model("llama")
    with (
        torch.no_grad(),
        namm.attach(model, "random", namm.Budget(tokens=20, per="layer"), update_interval=32) as handle,
    ):
        model(ids(1, 64))
        kept = handle.kept_positions(1)[0]
    everyone = dataclasses.replace(
        view(list(range(64))),
        state=torch.zeros(1, 2, 1, 64),
        positions=torch.arange(64).expand(1, 2, 64),
        keys=torch.ones(1, 2, 64, 2),
        layer=1,
        heads=torch.arange(2),
    )
    scores = Random().score(everyone)[0]
    worst = min(float(scores[h, p]) for h in (0, 1) for p in kept[h][:-1])
    lost = [float(scores[h, p]) for h in (0, 1) for p in range(32, 63) if p not in kept[h]]
    assert len(set(map(tuple, kept))) == 2
    assert max(lost) < worst


@pytest.mark.parametrize("kernel", [0, 4])
def test_snapkv_kernels(kernel: int) -> None:
    with pytest.raises(namm.ConfigurationError, match="odd kernel"):
        SnapKV(kernel=kernel)
