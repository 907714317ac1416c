"""Episodes under a Decision Transformer, several side by side.

What it may look at is its *context*: a window of its last steps, computed anew each step as usual, or a KV cache that
grows or is a memory's, to which a step adds its new tokens only. An action is predicted at its state, so one call reads
the last action, the new return to go and the new state.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from namm.compat import cache_in, passing
from namm.errors import ConfigurationError, ModelError
from namm.memory.attach import attach
from namm.memory.ledger import Footprint, footprint, row_bytes
from namm.memory.plan import Plan, Read, Scaling
from namm.policies import KeepAll, MemoryPolicy
from namm.rl.decision import TOKENS, Decision
from namm.selection import Budget, Selection


@dataclass(frozen=True)
class Window:
    """The last `steps` steps, computed anew; the model's training window if left out."""

    steps: int | None = None


@dataclass(frozen=True)
class Growing:
    """Everything, in transformers' own cache."""


@dataclass(frozen=True)
class Remembered:
    """What a memory keeps."""

    policy: MemoryPolicy
    selection: Selection | None = None
    update_interval: int = 48


Context = Window | Growing | Remembered


@dataclass(frozen=True)
class Episode:
    """How one episode went.

    Attributes:
        actions: taken, in order.
        seconds: of the model alone, divided among the episodes that ran beside it.
        bytes_held: when the step of the last update had been read (which is two tokens later), or at the end where
            nothing is forgotten; of a window what a cache of its tokens would hold.
        bytes_most: the most there were between two steps.
        bytes_full: of a cache that had kept everything.
    """

    seed: int
    total: float
    terminated: bool
    actions: Float[np.ndarray, "step action"]
    seconds: float
    bytes_held: int
    bytes_most: int
    bytes_full: int

    def __len__(self) -> int:
        return len(self.actions)


class _Actor(Protocol):
    """A model with what it may look at, for a batch of episodes.

    Attributes:
        interval: tokens between two updates; None where nothing is forgotten.
    """

    interval: int | None

    def act(
        self,
        states: Float[Tensor, "batch state"],
        returns: Float[Tensor, " batch"],
        step: int,
        before: Float[Tensor, "batch action"] | None,
    ) -> Float[Tensor, "batch action"]:
        """The actions at `step`, after those `before`; called for each step once."""
        ...

    def held(self, row: int) -> int:
        """Bytes held for one episode."""
        ...

    def keep(self, rows: list[int]) -> None:
        """Go on with these episodes only."""
        ...


@torch.no_grad()
def rollout(
    decision: Decision,
    make: Callable[[], Any],
    seeds: Sequence[int],
    context: Context = Window(),
    target: float | None = None,
) -> list[Episode]:
    """Play one episode for each seed; each is, up to rounding, the one that it would be alone.

    Args:
        make: gives a new environment.
        seeds: of the environments' first states.
        target: the return that is asked for; the model's own if left out.

    Raises:
        ConfigurationError: the environment does not fit the model, or an episode is over before it began.
        ModelError: the model gives no finite action.
    """
    envs = [make() for _ in seeds]
    _check(decision, envs[0])
    try:
        with acting(decision, context) as actor:
            return _play(decision, actor, envs, seeds, decision.about.target if target is None else target)
    finally:
        for env in envs:
            env.close()


def _play(decision: Decision, actor: _Actor, envs: list[Any], seeds: Sequence[int], target: float) -> list[Episode]:
    running = [_Running(env, seed, target) for env, seed in zip(envs, seeds, strict=True)]
    before, step, full = None, 0, token_bytes(decision)
    while playing := [episode for episode in running if not episode.over]:
        start = time.perf_counter()
        states = decision.standardised(np.stack([episode.state for episode in playing]))
        left = torch.tensor([episode.left / decision.about.unit for episode in playing], dtype=states.dtype)
        before = actor.act(states, left, step, before)
        seconds = (time.perf_counter() - start) / len(playing)
        for row, episode in enumerate(playing):
            episode.step(before[row].numpy(), seconds, actor.held(row))
        step += 1
        stay = [row for row, episode in enumerate(playing) if not episode.over]
        if 0 < len(stay) < len(playing):
            actor.keep(stay)
            before = before[stay]
    return [episode.done(full, actor.interval) for episode in running]


class _Running:
    """An episode that is being played."""

    def __init__(self, env: Any, seed: int, target: float) -> None:
        self.env, self.seed, self.left, self.total = env, seed, target, 0.0
        self.state, _ = env.reset(seed=seed)
        self.over = self.terminated = False
        self.actions: list[np.ndarray] = []
        self.bytes: list[int] = []
        self.seconds = 0.0

    def step(self, action: np.ndarray, seconds: float, held: int) -> None:
        if not np.isfinite(action).all():
            raise ModelError(
                "finite actions", f"{action} at step {len(self.actions)}", "Train the model again, more slowly."
            )
        space = self.env.action_space
        taken = np.clip(action, space.low, space.high).astype(space.dtype)
        self.state, reward, self.terminated, truncated, _ = self.env.step(taken)
        self.over = bool(self.terminated or truncated)
        self.left -= float(reward)
        self.total += float(reward)
        self.actions.append(action)
        self.bytes.append(held)
        self.seconds += seconds

    def done(self, token: int, interval: int | None) -> Episode:
        """The episode, where a full cache takes `token` bytes for a token."""
        steps = len(self.actions)
        if steps < 2:
            raise ConfigurationError(
                "an episode of two steps at least", f"one that ended after {steps}, with seed {self.seed}",
                "Check the environment: does it reset into a state in which it is over?",
            )  # fmt: skip
        seen = TOKENS * steps - 1
        updated = seen // interval * interval if interval else 0
        held = self.bytes[updated // TOKENS] if updated else self.bytes[-1]
        return Episode(
            self.seed, self.total, bool(self.terminated), np.stack(self.actions), self.seconds, held, max(self.bytes),
            token * seen,
        )  # fmt: skip


class _Recomputing:
    """The last steps, through the model's own forward pass."""

    interval: int | None = None

    def __init__(self, decision: Decision, steps: int) -> None:
        self.decision, self.steps = decision, steps
        self.token = token_bytes(decision)
        self.states: list[Tensor] = []
        self.actions: list[Tensor] = []
        self.returns: list[Tensor] = []

    def act(self, states: Tensor, returns: Tensor, step: int, before: Tensor | None) -> Tensor:
        if before is not None:
            self.actions[-1] = before
        for past, new in ((self.states, states), (self.returns, returns)):
            past.append(new)
        self.actions.append(states.new_zeros(len(states), self.decision.model.config.act_dim))  # not looked at
        for past in (self.states, self.actions, self.returns):
            del past[: -self.steps]
        seen, taken, asked = (torch.stack(past, dim=1) for past in (self.states, self.actions, self.returns))
        return self.decision.recompute(seen, taken, asked, step)

    def held(self, row: int) -> int:
        return self.token * (TOKENS * len(self.states) - 1)

    def keep(self, rows: list[int]) -> None:
        for past in (self.states, self.actions, self.returns):
            past[:] = [one[rows] for one in past]


class _Cached:
    """One call a step, of its new tokens only."""

    def __init__(self, decision: Decision, interval: int | None) -> None:
        self.decision, self.interval = decision, interval
        self.cache: Any = None

    def act(self, states: Tensor, returns: Tensor, step: int, before: Tensor | None) -> Tensor:
        model = self.decision.model
        tokens = self.decision.embed(states, returns, step, before)
        still = torch.zeros(tokens.shape[:2], dtype=torch.long)  # time is in the embedding, not in a position
        out = model.encoder(
            inputs_embeds=tokens, position_ids=still, **passing(model.encoder, self.cache), use_cache=True
        )
        self.cache = cache_in(out)
        return model.predict_action(out.last_hidden_state[:, -1])

    def held(self, row: int) -> int:
        return row_bytes(self.cache, row)

    def keep(self, rows: list[int]) -> None:
        self.cache.batch_select_indices(torch.tensor(rows))


@contextmanager
def acting(decision: Decision, context: Context) -> Iterator[_Actor]:
    """The model with an empty context of that kind."""
    if isinstance(context, Window):
        steps = decision.about.context if context.steps is None else context.steps
        if steps < 1:
            raise ConfigurationError("a window of a step at least", steps, "Leave it out for the model's own.")
        yield _Recomputing(decision, steps)
        return
    if isinstance(context, Growing):
        yield _Cached(decision, None)
        return
    with attach(decision.model, context.policy, context.selection, context.update_interval):
        yield _Cached(decision, context.update_interval if context.policy.evicts else None)


def _check(decision: Decision, env: Any) -> None:
    config, wanted = decision.model.config, (decision.model.config.state_dim, decision.model.config.act_dim)
    got = (*env.observation_space.shape, *env.action_space.shape)
    if got != wanted:
        raise ConfigurationError(
            f"an environment with {wanted[0]} numbers of state and {wanted[1]} of action, such as "
            f"{decision.about.env_id}", f"{env.spec and env.spec.id} with {got[0]} and {got[-1]}",
            "Use the environment that the model was trained for.",
        )  # fmt: skip
    if (limit := longest_episode(env)) > config.max_ep_len:
        raise ConfigurationError(
            f"episodes of at most {config.max_ep_len} steps, which the model has embeddings for", limit,
            "Train it for longer episodes.",
        )  # fmt: skip


def longest_episode(env: Any) -> int:
    """The time limit of an environment.

    Raises:
        ConfigurationError: it has none.
    """
    limit = env.spec.max_episode_steps if env.spec is not None else None
    if not limit:
        raise ConfigurationError(
            "an environment with a time limit", f"{env.spec and env.spec.id} without one",
            "Give it max_episode_steps where it is registered.",
        )  # fmt: skip
    return int(limit)


def token_bytes(decision: Decision) -> int:
    """Bytes of a key and a value in all layers."""
    return _footprint(decision, KeepAll()).full


def _footprint(decision: Decision, policy: MemoryPolicy) -> Footprint:
    config = decision.model.config
    empty = torch.empty(1, config.n_head, 0, config.hidden_size // config.n_head, dtype=decision.model.dtype)
    return footprint(Plan(policy, None, 1), [Read(empty, empty, empty, Scaling(1.0))] * config.n_layer)


def at_bytes_of(decision: Decision, policy: MemoryPolicy, steps: int) -> Budget:
    """The budget of a policy that holds, its own state included, no more bytes than a full cache of `steps` steps.

    Raises:
        ConfigurationError: that is not enough for its state and one token in each head.
    """
    costs = _footprint(decision, policy)
    slots = (costs.full * TOKENS * steps - costs.constant) // costs.token
    if slots < 1:
        raise ConfigurationError(
            f"a budget that holds the state of {policy!r} and a token at least", f"{steps} steps", "Allow more steps."
        )
    return policy.spending(Budget(tokens=slots))
