"""Pretraining: what it is fitted to is the attention that comes, and the fit follows it."""

from __future__ import annotations

import pytest
import torch

from namm import NAMM, NAMMConfig
from namm.evolution import pretraining
from namm.evolution.config import WarmStart
from namm.evolution.fitness import LanguageProblem
from namm.evolution.problem import Item
from namm.features import FAINT
from tests.evolution.test_fitness import configuration
from tests.letters import letters
from tests.zoo import causal_model

ITEMS = [Item("train", "passkey", 300, index, None) for index in range(2)]
QUICK = WarmStart(samples=1, rounds=2, steps=30, learning_rate=0.01)


def problem(features: str) -> LanguageProblem:
    return LanguageProblem(configuration(features), [(causal_model("llama"), letters())])


def layout(features: str = "compact", per: str = "layer") -> NAMMConfig:
    return NAMMConfig(features=features, update_interval=64, per=per)


def observed(
    given: LanguageProblem,
    item: Item,
    kind: NAMMConfig | None = None,
    memory: NAMM | None = None,
    config: WarmStart = QUICK,
) -> list[pretraining.Layer]:
    return pretraining.observe(given, item, pretraining.Targets.of(given, item, config), memory, kind or layout())


@torch.no_grad()
@pytest.mark.parametrize("weight", [1.0, 3.0])
def test_the_target_is_the_largest_attention_that_comes_later(weight: float) -> None:
    given = problem("compact")
    config = WarmStart(rehearsal=False, question_weight=weight)
    layers = observed(given, ITEMS[0], config=config)
    group = given.of_model[0].group(ITEMS[0])
    (sample,) = group.samples
    model = causal_model("llama", "eager")
    dense = model(torch.tensor([[*sample.prompt, *sample.answer]]), output_attentions=True).attentions
    length = len(group.text)
    updates = [*range(64, length, 64), length]
    assert len(layers) == 2 * len(updates)
    for seen in updates:
        of_layer = [parts for parts in layers if parts[0].age.shape[1] == seen]  # nothing is forgotten
        for (found,), attention in zip(of_layer, dense, strict=True):
            mean = attention[0].unflatten(0, (2, -1)).mean(1)
            later = mean[:, seen:, :seen].amax(1)
            asked = mean[:, length:, :seen].amax(1) * weight
            most = torch.log1p(torch.maximum(later, asked) / FAINT)
            torch.testing.assert_close(found.target, most, atol=1e-3, rtol=1e-3)


def test_a_rehearsal_asks_for_every_token() -> None:
    given = problem("compact")
    without, with_it = (observed(given, ITEMS[0], config=WarmStart(rehearsal=wanted)) for wanted in (False, True))
    target = [torch.cat([seen.target.flatten() for layer in layers for seen in layer]) for layers in (without, with_it)]
    assert bool((target[1] >= target[0]).all())
    assert float((target[1] - target[0]).mean()) > 0.1


@pytest.mark.parametrize(("features", "per"), [("compact-rehearsed", "layer"), ("paper", "head")])
def test_the_fit_follows_its_targets_and_is_the_same_each_time(features: str, per: str) -> None:
    given, kind = problem(features), layout(features, per)
    fitted = pretraining.fit(given, kind, ITEMS, QUICK)
    again = pretraining.fit(problem(features), kind, ITEMS, QUICK)
    torch.testing.assert_close(fitted.theta, again.theta, rtol=0, atol=0)
    layers = [part for item in ITEMS for part in observed(given, item, kind)]
    blind = NAMM.zeros(kind).with_statistics(fitted.mean, fitted.var)
    with torch.no_grad():
        before, after = (sum(float(pretraining.loss_of(n, part)) for part in layers) for n in (blind, fitted))
    assert after < 0.8 * before


@torch.no_grad()
def test_later_rounds_see_what_the_memory_itself_left() -> None:
    given, kind = problem("compact"), layout()
    network = pretraining.fit(given, kind, ITEMS, QUICK)
    item = Item("train", "passkey", 360, 0, 0.25)  # half would be full at the third update only
    own, full = (observed(given, item, kind, memory) for memory in (network, None))
    slots = [sum(seen.age.numel() for layer in layers for seen in layer) for layers in (own, full)]
    assert slots[0] < 0.8 * slots[1]
    assert any(len(layer) > 1 for layer in own)  # heads that hold unequal numbers come apart


@torch.no_grad()
def test_its_own_threshold_keeps_about_a_third() -> None:
    given, kind = problem("compact"), layout()
    fitted = pretraining.fit(given, kind, ITEMS, WarmStart(samples=1, rounds=1, steps=30, learning_rate=0.01))
    (outcome,) = given.measure(
        Item("train", "passkey", 360, 0, None), NAMM.from_vector(fitted.theta[None], fitted.mean, fitted.var, kind)
    )
    assert 0.1 < outcome.share < 0.7
