"""A rollout with a cache is the rollout without one, as long as both may look at the same."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import DecisionTransformerConfig, DecisionTransformerModel

import namm
from namm.errors import ConfigurationError, ModelError
from namm.policies import DEFAULT_MEMORY, H2O, KeepAll, StreamingLLM, View, resolve
from namm.policies.base import MemoryPolicy, Rehearsal
from namm.rl import Context, Decision, Episode, Growing, Remembered, Window, at_bytes_of, rollout
from namm.rl.decision import TOKENS
from namm.rl.rollout import token_bytes
from tests.rl.plain import plain
from tests.rl.toy import ACTION, LIMIT, STATE, toy_decision
from tests.zoo import decision_model

SEEDS = (1, 2, 3)
OURS = DEFAULT_MEMORY


def play(decision: Decision, context: Context, env: str = "Toy-v0", seeds=SEEDS) -> list[Episode]:
    return rollout(decision, lambda: gym.make(env), seeds, context)


def assert_same(ours: list[Episode], theirs: list[Episode], steps: int | None = None, **tolerance: float) -> None:
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a.actions[:steps], b.actions[:steps], **({"atol": 1e-4, "rtol": 0} | tolerance))


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-4), (torch.float64, 1e-9)])
def test_a_growing_cache_is_the_whole_history_computed_anew(dtype: torch.dtype, atol: float) -> None:
    decision = toy_decision(dtype=dtype)
    cached, anew = play(decision, Growing()), play(decision, Window(LIMIT))
    assert_same(cached, anew, atol=atol)
    assert [len(e) for e in cached] == [LIMIT] * len(SEEDS)
    np.testing.assert_allclose([e.total for e in cached], [e.total for e in anew], atol=1e-3)


def test_window_and_cache_agree_until_the_window_is_full() -> None:
    decision = toy_decision(context=6)
    cached, window = play(decision, Growing()), play(decision, Window())
    assert_same(cached, window, steps=6)
    assert not np.allclose(cached[0].actions[6:], window[0].actions[6:], atol=1e-3), "the past must matter here"


@pytest.mark.parametrize("policy", [KeepAll(), H2O()])
def test_who_forgets_nothing_acts_as_the_untouched_model(policy: MemoryPolicy) -> None:
    decision = toy_decision()
    everything = namm.Budget(tokens=TOKENS * LIMIT) if policy.evicts else None
    assert_same(play(decision, Remembered(policy, everything)), play(decision, Growing()), atol=2e-6)


def test_a_window_is_the_plain_implementation() -> None:
    decision = toy_decision()
    for episode in play(decision, Window()):
        actions, total = plain(decision, gym.make("Toy-v0"), episode.seed)
        np.testing.assert_allclose(episode.actions, actions, atol=1e-4)
        assert episode.total == pytest.approx(total, abs=1e-3)


@pytest.mark.parametrize("context", [Window(), Growing(), Remembered(H2O(), namm.Budget(tokens=12)), OURS], ids=str)
def test_episodes_side_by_side_are_what_they_are_alone(context: Context | str) -> None:
    decision = toy_decision()
    if isinstance(context, str):
        context = Remembered(resolve(context), namm.Budget(tokens=12))
    together = play(decision, context, "Falls-v0", seeds=range(6))
    assert len({len(e) for e in together}) > 2, "they should end at different times"
    alone = [play(decision, context, "Falls-v0", seeds=[seed])[0] for seed in range(6)]
    assert_same(together, alone)
    assert [e.bytes_held for e in together] == [e.bytes_held for e in alone]


@pytest.mark.parametrize("name", ["streaming", "h2o", "kvzip", "random", OURS])
def test_memories_forget_and_keep_to_the_bytes(name: str) -> None:
    decision = toy_decision(context=8)
    policy = resolve(name)
    budget = at_bytes_of(decision, policy, 8)
    (episode,) = play(decision, Remembered(policy, budget), seeds=[1])
    allowed = token_bytes(decision) * TOKENS * 8
    fresh = 2 * token_bytes(decision) * 2  # two tokens after the update, with their state and queries
    assert episode.bytes_held <= allowed + fresh
    assert episode.bytes_held < episode.bytes_most < episode.bytes_full * 2
    (full,) = play(decision, Growing(), seeds=[1])
    assert full.bytes_held == full.bytes_full == full.bytes_most == token_bytes(decision) * (TOKENS * LIMIT - 1)
    assert not np.allclose(episode.actions[17:], full.actions[17:], atol=1e-4), "forgetting must matter"
    np.testing.assert_allclose(episode.actions[:16], full.actions[:16], atol=1e-4)


def test_a_threshold_of_its_own() -> None:
    (episode,) = play(toy_decision(), Remembered(resolve(OURS)), seeds=[1])
    assert len(episode) == LIMIT


@dataclass(frozen=True, eq=False)
class Echoes(MemoryPolicy):
    """Notes the largest attention of rehearsals, and keeps everything."""

    name = "echoes"
    channels = 1
    absolute = True
    rehearsal: Rehearsal | None = Rehearsal()  # noqa: RUF009
    noted: dict[int, Tensor] = field(default_factory=dict)

    def rehearse(self, state: Tensor, attention: Tensor) -> Tensor:
        return torch.maximum(state, attention.amax(-2, keepdim=True))

    def score(self, view: View) -> Tensor:
        self.noted[view.layer] = view.state[0, :, 0]
        return torch.zeros_like(view.positions, dtype=torch.float32)


@torch.no_grad()
def test_positions_that_stand_still_do_so_in_a_rehearsal() -> None:
    encoder = decision_model().encoder
    block, policy = torch.randn(1, 32, 32), Echoes()
    still = torch.zeros(1, 64, dtype=torch.long)
    with namm.attach(encoder, policy, namm.Threshold(0.0), update_interval=32):
        encoder(inputs_embeds=block, position_ids=still[:, :32])
    encoder.set_attn_implementation("eager")
    twice = encoder(inputs_embeds=torch.cat([block, block], 1), position_ids=still, output_attentions=True).attentions
    encoder.set_attn_implementation("sdpa")
    for layer, seen in policy.noted.items():
        torch.testing.assert_close(seen, twice[layer][0, :, 32:, :32].amax(1), atol=1e-5, rtol=1e-4)


def test_the_newest_tokens_are_enough_for_a_window_that_is_read_once() -> None:
    decision = toy_decision()
    (episode,) = play(decision, Remembered(StreamingLLM(), namm.Budget(tokens=6)), seeds=[1])
    assert episode.bytes_held < episode.bytes_full / 4


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ("Ends-v0", "an episode of two steps at least; got one that ended after 1, with seed 1"),
        ("Endless-v0", "an environment with a time limit; got Endless-v0 without one"),
        (
            "Pendulum-v1",
            f"an environment with {STATE} numbers of state and {ACTION} of action, such as Toy-v0; got Pend",
        ),
    ],
)
def test_environments_that_do_not_fit(env: str, said: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        play(toy_decision(), Window(), env)
    assert said in str(error.value)


def test_longer_episodes_than_the_model_knows() -> None:
    decision = toy_decision()
    with pytest.raises(ConfigurationError, match="at most 40 steps, which the model has embeddings for; got 50"):
        rollout(decision, lambda: gym.make("Toy-v0", max_episode_steps=50), [0], Window())


def test_actions_that_are_no_numbers() -> None:
    decision = toy_decision()
    torch.nn.init.constant_(decision.model.predict_action[0].bias, torch.nan)
    with pytest.raises(ModelError, match="finite actions"):
        play(decision, Growing())


@pytest.mark.parametrize(("policy", "steps"), [(H2O(), 0), (resolve(namm.NAMM.zeros()), 1)])
def test_a_budget_for_nothing(policy: MemoryPolicy, steps: int) -> None:
    with pytest.raises(ConfigurationError, match="a token at least"):
        at_bytes_of(toy_decision(), policy, steps)
    with pytest.raises(ConfigurationError, match="a window of a step at least"):
        play(toy_decision(), Window(0))


def test_a_simulator_acts_the_same_with_and_without_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # MuJoCo writes its warnings where it runs
    config = DecisionTransformerConfig(
        state_dim=11,
        act_dim=3,
        hidden_size=32,
        n_layer=2,
        n_head=2,
        max_ep_len=50,
        bos_token_id=None,
        eos_token_id=None,
    )
    about = replace(toy_decision(50).about, env_id="Hopper-v5", mean=[0.0] * 11, deviation=[1.0] * 11)
    decision = Decision(DecisionTransformerModel(config).double(), about)
    window, cached = (
        rollout(decision, lambda: gym.make("Hopper-v5", max_episode_steps=50), SEEDS, context)
        for context in (Window(), Growing())
    )
    assert_same(cached, window, atol=1e-8)
    for episode in window:
        assert plain(decision, gym.make("Hopper-v5", max_episode_steps=50), episode.seed)[1] == pytest.approx(
            episode.total
        )
