"""How good a memory is: how likely the right answer stays after the memory has read the text.

For each sample the negative log-likelihood of the answer (teacher-forced, per token) is put between two references,

    score = (floor - nll) / (floor - full)

where `full` is the untouched model and `floor` a memory of the first tokens only: 1 is as good as forgetting nothing.
Candidates hold as many bytes as each other, their state included, exactly as `namm eval` measures them.

Everything before the first update is computed once for each sample, and observed once for all candidates.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from namm.calibrating import calibrate
from namm.configuration import OWN
from namm.errors import ConfigurationError, ScoreError
from namm.evaluation import Method, Reader, TextGroup, text_before
from namm.evolution.config import EvolutionConfig, Stage
from namm.evolution.problem import Item, Outcome
from namm.memory.plan import Plan, Probe
from namm.memory.prefix import Prefix
from namm.models import context_length, load_model
from namm.network import NAMM, NAMMConfig
from namm.policies import MemoryPolicy, NAMMPolicy, View
from namm.selection import Threshold
from namm.spectrogram import HOP, Statistics
from namm.tasks import EMBEDDED, Encoded, Request, Sample, encode, find_tasks, make_sample

_SPAN = 0.5  # nats between the references, at least: where forgetting costs nothing, noise must not count
HELD_OUT = 4  # of a file or a published suite, each so many-th sample is for validation
_FAILED = Outcome(score=math.nan, nll=math.nan, share=math.nan)
_Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]
_ROWS = 16  # of one batch on a CPU
_ROOM = 0.4  # of the free memory of a GPU, for the rows of one batch


@dataclass(frozen=True)
class _Ready:
    """A sample with what is the same for all candidates."""

    group: TextGroup
    prefix: Prefix
    full: float
    floor: float
    best: float
    """The task's own score with nothing forgotten."""


class LanguageProblem:
    """Memories of the run's language models on tasks, see above: each item is measured on the model that it names.

    Args:
        config: of the run; the same configuration measures alike in every process.
        models: loaded ones, in the order of `config.models`, instead of loading these.

    Raises:
        ConfigurationError: texts of a stage that are longer than the context of a model.
        NotFoundError: there is no such model.
    """

    def __init__(self, config: EvolutionConfig, models: Sequence[_Loaded] | None = None) -> None:
        self.config = config
        given: Sequence[_Loaded | None] = [None] * len(config.models) if models is None else models
        self.of_model = [ModelProblem(config, index, loaded) for index, loaded in enumerate(given)]

    def of(self, item: Item) -> ModelProblem:
        """The problem of the model that the item names."""
        return self.of_model[item.model]

    def statistics(self, item: Item, layout: NAMMConfig) -> Statistics:
        """See `Problem.statistics`."""
        return self.of(item).statistics(item, layout)

    def measure(self, item: Item, networks: NAMM) -> list[Outcome]:
        """See `Problem.measure`."""
        return self.of(item).measure(item, networks)

    def threshold(self, item: Item, network: NAMM) -> float:
        """See `Problem.threshold`."""
        return self.of(item).threshold(item, network)


class ModelProblem:
    """Memories of one language model on tasks.

    Args:
        index: of the model in `config.models`.
        loaded: the model and its tokenizer, instead of loading it.
    """

    def __init__(self, config: EvolutionConfig, index: int = 0, loaded: _Loaded | None = None) -> None:
        self.config = config
        if loaded is None:
            given = config.models[index]
            dtype, device = (None if said == "auto" else said for said in (given.dtype, given.device))
            loaded = load_model(given.name, dtype, device)
        self.model, self.tokenizer = loaded
        _check_lengths(config, config.models[index].name, context_length(self.model))
        self.reader = Reader(*loaded, config.memory.update_interval, decode=config.objective.score == "metric")
        self._loaded: dict[str, list[Sample]] = {}
        self._references: dict[Item, tuple[float, float, float]] = {}
        self._kept: OrderedDict[tuple[Item, Hashable], _Ready] = OrderedDict()

    def policy(self, network: NAMM) -> NAMMPolicy:
        """A memory of this model, calibrated for it if it wants to be."""
        policy = NAMMPolicy(network)
        return policy.calibrated(calibrate(self.model, self.tokenizer)) if policy.calibrates else policy

    # -- samples -----------------------------------------------------------------------------------------------

    def encoded(self, item: Item) -> Encoded:
        """The sample of an item.

        Raises:
            ConfigurationError: its task has no sample for this split.
            NotFoundError: there is no such task.
        """
        if item.task in EMBEDDED:
            sample = make_sample(item.task, item.split, item.index, item.tokens, self.tokenizer, self.config.seed)
        else:
            known = self._samples(item)
            sample = known[item.index % len(known)]
        return encode(sample, self.tokenizer, longest=context_length(self.model))

    def _samples(self, item: Item) -> list[Sample]:
        """Samples of a task that is no part of the embedded suite; of loaded ones the split has its share."""
        key = f"{item.split}/{item.task}/{item.tokens}"
        if key not in self._loaded:
            (task,) = find_tasks([item.task], self.config.data)
            count = self.config.search.pool
            data = Path(self.config.data) if self.config.data else None
            request = Request(self.tokenizer, item.split, count, item.tokens, self.config.seed, data)
            if not task.generated:  # one split is published, which is divided below
                request = replace(request, split="test", count=None)
            found = list(islice(task.samples(request), count * HELD_OUT))
            if not task.generated:
                held_out = item.split == "validation"
                found = [sample for i, sample in enumerate(found) if (i % HELD_OUT == HELD_OUT - 1) == held_out]
            if not found:
                raise ConfigurationError(
                    f"a sample of {item.task} for {item.split} at least",
                    "none",
                    f"Each {HELD_OUT}th sample of a file is held out for validation: give {HELD_OUT} or more.",
                )
            self._loaded[key] = found
        return self._loaded[key]

    def group(self, item: Item) -> TextGroup:
        """The text of an item up to the boundary, and what is asked about it."""
        encoded = self.encoded(item)
        return TextGroup(item.tokens, text_before(encoded, HOP), (encoded,))

    def ready(self, item: Item, policy: MemoryPolicy) -> _Ready:
        """An item, its text read and its references measured; kept for later generations while there is room."""
        sample = replace(item, budget=None)
        key = (sample, policy.observer)
        if key not in self._kept:
            group = self.group(item)
            prefix = self.reader.prefix(group, [policy])
            if sample not in self._references:
                full, floor = (self.reader.ask(group, prefix, [Method(name, None)])[0] for name in ("full", "floor"))
                self._references[sample] = (full.nll, floor.nll, full.score)
            self._kept[key] = _Ready(group, prefix.settled(policy), *self._references[sample])
            room = self.config.workers.keep * 2**30
            while len(self._kept) > 1 and sum(ready.prefix.nbytes() for ready in self._kept.values()) > room:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]

    # -- measuring ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def measure(self, item: Item, networks: NAMM) -> list[Outcome]:
        """See `Problem.measure`. Scores that are no numbers make a failed outcome, and nothing else does."""
        ready = self.ready(item, self.policy(networks))
        thetas = networks.theta if networks.theta.ndim == 2 else networks.theta[None]
        outcomes: list[Outcome] = []
        for chunk in thetas.split(self._rows(ready)):
            try:
                outcomes += self._ask(item, ready, networks, chunk)
            except ScoreError:
                outcomes += [self._alone(item, ready, networks, theta) for theta in chunk]
        return outcomes

    def _alone(self, item: Item, ready: _Ready, networks: NAMM, theta: Tensor) -> Outcome:
        try:
            return self._ask(item, ready, networks, theta[None])[0]
        except ScoreError:
            return _FAILED

    def _ask(self, item: Item, ready: _Ready, networks: NAMM, thetas: Tensor) -> list[Outcome]:
        policy = self.policy(replace(networks, theta=thetas))
        return self._outcomes(item, ready, [policy] * len(thetas))

    @torch.no_grad()
    def compare(self, item: Item, policy: MemoryPolicy) -> Outcome:
        """The outcome of any policy on an item, to compare candidates with."""
        return self._outcomes(item, self.ready(item, policy), [policy])[0]

    def _outcomes(self, item: Item, ready: _Ready, policies: Sequence[MemoryPolicy]) -> list[Outcome]:
        budget = OWN if item.budget is None else item.budget
        methods = [Method("candidate", budget, policy) for policy in policies]
        answers = self.reader.ask(ready.group, ready.prefix, methods)
        outcomes = []
        for answer in answers:
            share = answer.held.bytes_held / answer.held.bytes_full
            if self.config.objective.score == "nll":
                score = 1 - (answer.nll - ready.full) / max(ready.floor - ready.full, _SPAN)
            else:
                score = 1 + answer.score - ready.best
            outcomes.append(Outcome(score, answer.nll, share))
        return outcomes

    @torch.no_grad()
    def threshold(self, item: Item, network: NAMM) -> float:
        """See `Problem.threshold`; over all layers and heads together."""
        policy = self.policy(network)
        ready = self.ready(item, policy)
        length, noted = len(ready.group.text), list[Tensor]()

        def note(view: View, scores: Tensor) -> None:
            if view.seen == length:
                noted.append(scores.flatten())

        self.read(ready.group, policy, Probe(on_update=note), item.budget, ready.prefix)
        scores = torch.cat(noted).float().cpu()
        plan = self.reader.plan(ready.group, ready.prefix, Method("threshold", item.budget, policy))
        assert plan.selection is not None
        room = ready.prefix.footprint(plan).heads * (plan.selection.target(length) or 0)
        return float(scores.topk(min(room, len(scores))).values[-1])

    def _rows(self, ready: _Ready) -> int:
        """Candidates read side by side: as many as fit on a GPU; some on a CPU, so that weights are fetched once."""
        device = self.model.device
        if device.type != "cuda":
            return _ROWS
        free, _ = torch.cuda.mem_get_info(device)
        length = len(ready.group.samples[0].prompt) + len(ready.group.samples[0].answer)
        config = self.model.config.get_text_config(decoder=True)
        cache = 2 * ready.prefix.nbytes() * length // ready.prefix.tokens
        activations = 8 * length * config.hidden_size * self.model.dtype.itemsize
        return max(1, int(free * _ROOM) // (cache + activations))

    # -- normalisation -----------------------------------------------------------------------------------------

    @torch.no_grad()
    def statistics(self, item: Item, layout: NAMMConfig) -> Statistics:
        """Of the signals of all tokens at each update of a memory of zeros, which forgets nothing (spec 5)."""
        policy, features, seen = self.policy(NAMM.zeros(layout)), layout.feature_set, list[Statistics]()

        def note(view: View, scores: Tensor) -> None:
            seen.append(Statistics.of(features.read(policy.state_of(view)).flatten(0, -2).cpu()))

        self.read(self.group(item), policy, Probe(on_update=note))
        return reduce(Statistics.merge, seen, Statistics.empty(features.signals))

    @torch.no_grad()
    def read(
        self,
        group: TextGroup,
        policy: MemoryPolicy,
        probe: Probe,
        budget: float | None = None,
        prefix: Prefix | None = None,
    ) -> None:
        """Let a policy read a text under a probe; what scores below 0 is forgotten if there is no budget."""
        prefix = prefix or self.reader.prefix(group, [policy])
        if budget is None:
            plan = Plan(policy, Threshold(0.0), self.reader.interval, last=len(group.text))
        else:
            plan = self.reader.plan(group, prefix, Method("reader", budget, policy))
        self.reader.read(group, prefix, [replace(plan, probe=probe)])


def _generated(config: EvolutionConfig, stage: Stage) -> bool:
    return any(task.generated for task in find_tasks(stage.task_names, config.data))


def _check_lengths(config: EvolutionConfig, name: str, longest: int | None) -> None:
    generated = [stage for stage in config.stages if _generated(config, stage)]
    asked = max((tokens for stage in generated for tokens in stage.tokens), default=0)
    if longest is not None and asked > longest:
        raise ConfigurationError(
            f"stages.tokens that all models of the run can read: {name} reads {longest}",
            asked,
            "Use shorter texts, or leave that model out.",
        )
