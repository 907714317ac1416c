"""Pretraining, for a warm start: a network is fitted to how much attention tokens will receive.

To keep or to forget has no gradient, but what a token is needed for can be measured: the largest attention that any
later query pays it, under the full cache, as the oracle of `namm eval` knows it. A question asks for little of a text,
and the next one for something else; so the queries of a rehearsal, which ask for every token once, count as later ones
too. The score of a token is fitted to the logarithm of that. States come from the full cache first, then from the
caches that the fitted memory itself leaves behind.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import cycle

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from namm.configuration import OWN
from namm.errors import ConfigurationError
from namm.evaluation import foresee
from namm.evolution.config import WarmStart
from namm.evolution.fitness import LanguageProblem
from namm.evolution.problem import Item
from namm.features import FAINT
from namm.memory.plan import Probe
from namm.network import NAMM, NAMMConfig
from namm.policies import KVzip, NAMMPolicy, View
from namm.spectrogram import Statistics

log = logging.getLogger(__name__)
_BATCH = 12  # layers at an update that make a gradient step
_SHARE = 0.35  # of the tokens that a fitted memory keeps at its own threshold


@dataclass(frozen=True)
class _Seen:
    """Kv heads of one layer that hold equally many slots, at an update.

    Attributes:
        signals: unnormalised.
        target: log(1 + a / FAINT), a the largest attention that will come.
    """

    signals: Float[Tensor, "kv_head slot signal"]
    age: Int[Tensor, "kv_head slot"]
    target: Float[Tensor, "kv_head slot"]


Layer = list[_Seen]
"""All heads of a layer at an update."""


_Views = dict[tuple[int, int], list[tuple[Tensor, Tensor, Tensor]]]
"""What a memory was shown, by layer and tokens read: states, positions and heads."""


def _noting(views: _Views, policy: NAMMPolicy | None = None) -> Probe:
    def note(view: View, scores: Tensor) -> None:
        state = view.state if policy is None else policy.state_of(view)
        shown = (state[0].float().cpu(), view.positions[0].cpu(), view.heads.cpu())
        views.setdefault((view.layer, view.seen), []).append(shown)

    return Probe(on_update=note)


def fit(problem: LanguageProblem, layout: NAMMConfig, items: Sequence[Item], config: WarmStart) -> NAMM:
    """A network that scores tokens by the attention they will receive.

    Raises:
        ConfigurationError: no item to fit to.
    """
    if not items:
        raise ConfigurationError("an item at least to fit the start to", "none", "Give stages with tasks and samples.")
    generator = np.random.default_rng(problem.config.seed)
    network, layers, targets = NAMM.zeros(layout), list[Layer](), dict[Item, Targets]()
    for turn in range(config.rounds):
        for item, budget in zip(items, cycle(problem.config.objective.budgets)):
            targets[item] = targets.get(item) or Targets.of(problem, item, config)
            own = replace(item, budget=None if budget == OWN else float(budget))
            layers += observe(problem, own, targets[item], network if turn else None, layout)
        if not turn:
            network = _started(layout, layers, generator)
        network = _descend(network, layers, config.steps, config.learning_rate, generator)
    return _thresholded(network, layers)


@dataclass(frozen=True)
class Targets:
    """The scores that a text's tokens are fitted to after each update: by layer and tokens read, `[kv_head, token]`."""

    of_layer: dict[tuple[int, int], Float[Tensor, "kv_head token"]]

    @classmethod
    @torch.no_grad()
    def of(cls, problem: LanguageProblem, item: Item, config: WarmStart) -> Targets:
        """Measured with the full cache."""
        here = problem.of(item)
        group = here.group(item)
        (sample,) = group.samples
        interval, length = here.reader.interval, len(group.text)
        updates = (*range(interval, length, interval), length)
        ids = torch.tensor([[*sample.prompt, *sample.answer]], device=here.model.device)
        future = foresee(here.model, ids, updates).future
        echoes: _Views = {}
        if config.rehearsal:
            here.read(group, KVzip(), _noting(echoes))
        found = {}
        for layer, later in future.items():
            for seen, after in zip(updates, later, strict=True):
                asked = [after, later[-1][:, :seen] * config.question_weight]
                if config.rehearsal:
                    ((state, _, _),) = echoes[layer, seen]  # nothing scores below 0, so nothing is forgotten
                    asked.append(state[:, 0].to(after.device))
                found[layer, seen] = torch.log1p(torch.stack(asked).amax(0) / FAINT).cpu()
        return cls(found)


@torch.no_grad()
def observe(
    problem: LanguageProblem, item: Item, target: Targets, network: NAMM | None, layout: NAMMConfig
) -> list[Layer]:
    """What the memory sees of each layer at each update of a text; the full cache if there is no network yet."""
    shown, here = _Views(), problem.of(item)
    policy = here.policy(network or NAMM.zeros(layout))
    here.read(here.group(item), policy, _noting(shown, policy), item.budget if network else None)
    read = layout.feature_set.read
    return [
        [
            _Seen(read(state), seen - 1 - positions, target.of_layer[layer, seen][heads].gather(1, positions.long()))
            for state, positions, heads in views
        ]
        for (layer, seen), views in shown.items()
    ]


@torch.enable_grad()
def _descend(network: NAMM, layers: Sequence[Layer], steps: int, rate: float, generator: np.random.Generator) -> NAMM:
    """Adam on the squared difference of score and target, each centred over those that compete for the same slots."""
    theta = network.theta.clone().requires_grad_()
    optimiser = torch.optim.Adam([theta], lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps)
    for step in range(steps):
        loss = torch.zeros(())
        for chosen in generator.choice(len(layers), size=min(_BATCH, len(layers)), replace=False):
            loss = loss + loss_of(replace(network, theta=theta), layers[chosen]) / _BATCH
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 50 == 0:
            log.info("pretraining: step %d of %d, loss %.3f", step, steps, loss.item())
    return replace(network, theta=theta.detach())


def loss_of(network: NAMM, layer: Layer) -> Float[Tensor, ""]:
    """Mean squared difference in one layer at one update."""
    apart = [scores(network, seen) - seen.target for seen in layer]
    if network.config.per == "layer":
        return torch.cat([part.flatten() for part in apart]).var(correction=0)
    return torch.cat([part.var(-1, correction=0) for part in apart]).mean()


def scores(network: NAMM, seen: _Seen) -> Float[Tensor, "kv_head slot"]:
    """As the policy computes them."""
    normalised = (seen.signals - network.mean) / network.var.sqrt().clamp(min=1e-7)
    return network.scores(network.feature_set.assemble(normalised, seen.age)[None])[0]


def _started(layout: NAMMConfig, layers: Sequence[Layer], generator: np.random.Generator) -> NAMM:
    """Small random weights, and the statistics of what was seen."""
    parts = (Statistics.of(seen.signals.flatten(0, 1)) for layer in layers for seen in layer)
    statistics = reduce(Statistics.merge, parts, Statistics.empty(layout.feature_set.signals))
    weights = []
    for name, shape in layout.shapes.items():
        scale = 0.0 if name.startswith("b_") else 1 / math.sqrt(shape[0])
        weights.append(generator.normal(0.0, scale, math.prod(shape)))
    theta = torch.as_tensor(np.concatenate(weights), dtype=torch.float32)
    return NAMM.from_vector(theta, statistics.mean, statistics.var, layout)


@torch.no_grad()
def _thresholded(network: NAMM, layers: Sequence[Layer]) -> NAMM:
    """The same memory with its bias set such that a `_SHARE` of the tokens seen scores above zero."""
    given = torch.cat([scores(network, seen).flatten() for layer in layers for seen in layer])
    theta = network.theta.clone()
    theta[-1] -= torch.from_numpy(np.asarray(np.quantile(given.numpy(), 1 - _SHARE), dtype=np.float32))
    return replace(network, theta=theta)
