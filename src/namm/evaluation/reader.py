"""Reading a text under a memory, and asking about it.

The text is read up to a boundary, where every memory decides for the last time and its bytes are measured; question
and gold answer follow and are kept. An answer is scored teacher-forced: its likelihood is what a memory is steered by,
and greedy decoding gives it exactly if each of its tokens is the most likely one after those before.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from namm.compat import passing
from namm.configuration import OWN
from namm.errors import ConfigurationError, ModelError
from namm.evaluation.oracle import foresee
from namm.memory.attach import find_decoder
from namm.memory.cache import MemoryCache
from namm.memory.ledger import Held, held_by
from namm.memory.pieces import check_pieces
from namm.memory.plan import Plan
from namm.memory.prefix import Prefix
from namm.memory.reading import ask, read
from namm.policies import KeepAll, MemoryPolicy, StreamingLLM
from namm.selection import Budget
from namm.tasks import Encoded, metric

_FIRST = 4  # tokens of the floor
# whatever the model's own generation settings are
_GREEDY = {"do_sample": False, "num_beams": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0}


@dataclass(frozen=True)
class TextGroup:
    """Samples that share the text up to the boundary, which is read once for all of them.

    Attributes:
        tokens: length that was asked for; 0 for loaded texts.
        text: token ids up to the boundary.
    """

    tokens: int
    text: tuple[int, ...]
    samples: tuple[Encoded, ...]

    def rest(self, sample: Encoded) -> tuple[int, ...]:
        """What follows the boundary, up to the answer."""
        return sample.prompt[len(self.text) :]


@dataclass(frozen=True)
class Method:
    """A memory at a budget: a line of the table. `budget` is a share of bytes, "own", or None where there is none."""

    name: str
    budget: float | str | None
    policy: MemoryPolicy | None = None

    @property
    def whole(self) -> bool:
        """Whether it decides once, when the whole text has been read."""
        return self.policy is not None and self.policy.whole


@dataclass(frozen=True)
class Answer:
    """How one sample was answered under one memory. `nll`: nats per gold token."""

    method: Method
    sample: Encoded
    held: Held
    nll: float
    exact: bool
    score: float
    prediction: str
    seconds: float


def methods(policies: Mapping[str, MemoryPolicy], budgets: Sequence[float | str]) -> list[Method]:
    """Every policy at every budget; at their own threshold those that have one."""
    return [
        Method(name, budget, policy)
        for name, policy in policies.items()
        for budget in budgets
        if budget != OWN or policy.absolute
    ]


def alignment(hops: list[int], interval: int) -> int:
    """Texts are decided upon at multiples of this, so that no policy has attention left to observe.

    Raises:
        ConfigurationError: the interval between updates is no multiple of it.
    """
    step = math.lcm(*hops)
    if interval < 1 or interval % step:
        raise ConfigurationError(f"an update interval that is a multiple of {step}", interval, "The default is 512.")
    return step


def text_before(encoded: Encoded, step: int, whole: bool = False) -> tuple[int, ...]:
    """The tokens up to the boundary: whole steps of the context, or of the whole prompt, one token of it left at least.

    Raises:
        ConfigurationError: they are too few to forget any.
    """
    read = len(encoded.prompt) if whole else len(encoded.context)
    length = min(read, len(encoded.prompt) - encoded.moved - 1) // step * step
    if length < 2 * step:
        raise ConfigurationError(
            f"a text of at least {2 * step} tokens before the question",
            f"{read} in sample {encoded.sample.id!r} of {encoded.sample.task}",
            "There is nothing to forget in it; drop it or use a longer text.",
        )
    return encoded.prompt[:length]


class Reader:
    """Reads texts with one model.

    Args:
        decode: whether answers are generated for tasks whose metric needs it; without, only likelihoods count.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, update_interval: int, decode: bool = True
    ) -> None:
        self.model, self.tokenizer, self.interval, self.decode = model, tokenizer, update_interval, decode
        check_pieces(find_decoder(model), "questions that are asked after a text was read")

    def prefix(self, group: TextGroup, policies: Iterable[MemoryPolicy] = (), first: int | None = None) -> Prefix:
        """The tokens before the first update, rehearsed as the policies want it.

        Args:
            first: tokens read at that update; the update interval if left out.
        """
        rehearsals = {
            policy.rehearsal: None for policy in policies if policy.rehearsal is not None and policy.reads_again
        }
        return Prefix.of(self.model, self._ids(group.text[: first or self.interval]), rehearsals)

    def read(self, group: TextGroup, prefix: Prefix, plans: Sequence[Plan]) -> MemoryCache:
        """The text, read under several memories side by side."""
        cache = prefix.start(tuple(plans))
        if left := group.text[prefix.tokens :]:
            read(self.model, cache, left)
        return cache

    @torch.no_grad()
    def ask(self, group: TextGroup, prefix: Prefix, methods: Sequence[Method]) -> list[Answer]:
        """Read the text under several memories side by side, and ask about it: for each of them all samples."""
        start = time.perf_counter()
        plans = [self.plan(group, prefix, method) for method in methods]
        cache = self.read(group, prefix, plans)
        held = [held_by(cache, i, plan, prefix.footprint(plan), len(group.text)) for i, plan in enumerate(plans)]
        for method, got in zip(methods, held, strict=True):
            check_bytes(method, got)
        reading = (time.perf_counter() - start) / len(plans)
        answers = [self._answers(group, sample, cache, methods, held, reading) for sample in group.samples]
        return [answer for of_sample in zip(*answers, strict=True) for answer in of_sample]

    @torch.no_grad()
    def ask_truncated(self, group: TextGroup, prefix: Prefix, methods: Sequence[Method]) -> list[Answer]:
        """As `ask`, for the text with its middle removed and a cache of transformers' own; one method at a time."""
        start = time.perf_counter()
        (method,) = methods
        assert isinstance(method.budget, float)
        length = len(group.text)
        size = max(1, math.floor(method.budget * length))
        text = group.text[: size - size // 2] + group.text[length - size // 2 :]
        cache = MemoryCache.planned(self.model.config, (Plan(KeepAll(), None, self.interval),))
        read(self.model, cache, text)
        costs = prefix.footprint(Plan(KeepAll(), None, self.interval))
        heads, token = costs.heads, costs.full
        held = Held(heads * size, heads * length, token * size, token * length, token, token * size)
        reading = time.perf_counter() - start
        return [
            answer
            for sample in group.samples
            for answer in self._answers(group, sample, cache, methods, [held], reading, text)
        ]

    @torch.no_grad()
    def ask_oracle(self, group: TextGroup, prefix: Prefix, methods: Sequence[Method]) -> list[Answer]:
        """As `ask`, by a memory that has seen what will be asked; it is another one for each sample."""
        updates = (*range(self.interval, len(group.text), self.interval), len(group.text))
        answers = []
        for sample in group.samples:
            start = time.perf_counter()
            oracle = foresee(self.model, self._ids(sample.prompt + sample.answer), updates)
            extra = (time.perf_counter() - start) / len(methods)
            alone = replace(group, samples=(sample,))
            for method in methods:
                (answer,) = self.ask(alone, prefix, [replace(method, policy=oracle)])
                answers.append(replace(answer, seconds=answer.seconds + extra))
        return answers

    def plan(self, group: TextGroup, prefix: Prefix, method: Method) -> Plan:
        """The method's plan for a text, see `plan_for`."""
        return plan_for(method, prefix, len(group.text), self.interval)

    def _answers(
        self,
        group: TextGroup,
        sample: Encoded,
        cache: MemoryCache,
        methods: Sequence[Method],
        held: Sequence[Held],
        reading: float,
        text: tuple[int, ...] | None = None,
    ) -> list[Answer]:
        start = time.perf_counter()
        rows, rest = len(methods), group.rest(sample)
        nll, chosen = self._likelihood(cache, rest, sample.answer)
        exact = [reply == sample.answer for reply in chosen]
        if sample.sample.metric == "exact" or not self.decode:
            predictions = [self.tokenizer.decode(_greedy(reply, sample.answer)) for reply in chosen]
            scores = [float(same) for same in exact]
        else:
            prompt = (group.text if text is None else text) + rest
            official = prompt[: len(prompt) - sample.moved]  # decoding must not profit from how the answer begins
            predictions = self._generated(cache.fork(), official, sample, rows)
            measure = metric(sample.sample.metric)
            scores = [measure(prediction, sample.sample.answers, sample.sample.classes) for prediction in predictions]
        seconds = reading + (time.perf_counter() - start) / rows
        return [
            Answer(methods[i], sample, held[i], nll[i], exact[i], scores[i], predictions[i], seconds)
            for i in range(rows)
        ]

    def _likelihood(
        self, cache: MemoryCache, rest: tuple[int, ...], answer: tuple[int, ...]
    ) -> tuple[list[float], list[tuple[int, ...]]]:
        """For each row the mean negative log-likelihood of the answer, and the likeliest token in place of each."""
        logits = ask(self.model, cache, rest + answer, kept=len(answer) + 1)[:, :-1].float()
        gold = self._ids(answer, len(logits))
        nll = torch.nn.functional.cross_entropy(logits.transpose(1, 2), gold, reduction="none").mean(1)
        if not bool(torch.isfinite(nll).all()):
            raise ModelError(
                "a finite likelihood", f"{nll.tolist()} in {self.model.dtype}", "Try --dtype float32 or bfloat16."
            )
        return nll.tolist(), [tuple(row) for row in logits.argmax(-1).tolist()]

    def _generated(self, cache: MemoryCache, prompt: tuple[int, ...], sample: Encoded, rows: int) -> list[str]:
        ids = self._ids(prompt, rows)
        out = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            **passing(self.model, cache),
            **_GREEDY,
            max_new_tokens=sample.sample.max_new_tokens,
            pad_token_id=self.tokenizer.eos_token_id,
        )
        return self.tokenizer.batch_decode(out[:, len(prompt) :], skip_special_tokens=True)

    def _ids(self, tokens: Sequence[int], rows: int = 1) -> Tensor:
        return torch.tensor([list(tokens)], device=self.model.device).expand(rows, -1)


def plan_for(method: Method, prefix: Prefix, length: int, interval: int, after: int = 0) -> Plan:
    """The method's plan: the bytes of its budget when `length + after` tokens were read, and as many before.

    Args:
        prefix: of which the bytes of a token are known.
        length: tokens read at the last update.
        after: tokens after it, which are kept whatever they are.

    Raises:
        ConfigurationError: the budget does not hold the policy's state and a token.
    """
    if method.name == "full":
        return Plan(KeepAll(), None, interval)
    if method.name == "floor":  # the newest token always stays
        return Plan(StreamingLLM(_FIRST), Budget(tokens=_FIRST + 1), interval, last=length)
    assert method.policy is not None
    if method.budget == OWN:
        return Plan(method.policy, method.policy.default_selection(), interval, last=length)
    assert isinstance(method.budget, float)
    costs = prefix.footprint(Plan(method.policy, None, interval))
    allowed = method.budget * costs.full * (length + after)
    constant = 0 if after else costs.constant  # after the last update no query is held any more
    slots = math.floor((allowed - constant) / costs.token) - after
    if slots < 1:
        raise ConfigurationError(
            f"a budget that holds the state of {method.name} and a token at least",
            f"{method.budget:.0%} of {length + after} tokens",
            "Allow more bytes, or longer texts.",
        )
    budget = method.policy.spending(Budget(tokens=slots))
    return Plan(method.policy, budget, length if method.policy.whole else interval, last=length)


def _greedy(chosen: tuple[int, ...], answer: tuple[int, ...]) -> tuple[int, ...]:
    """What greedy decoding is known to give: up to the first token that is not the answer's."""
    wrong = (place for place, (a, b) in enumerate(zip(chosen, answer, strict=True)) if a != b)
    return chosen[: next(wrong, len(chosen)) + 1]


def check_bytes(method: Method, held: Held) -> None:
    """A budget in bytes is met to within one token in every head."""
    if not isinstance(method.budget, float):
        return
    allowed = method.budget * held.bytes_full
    if not allowed - held.bytes_per_slot <= held.bytes_held <= allowed + 1:
        raise ModelError(
            f"{allowed:,.0f} bytes held by {method.name}, to within {held.bytes_per_slot:,}",
            f"{held.bytes_held:,}",
            "Please report this with the model's name.",
        )
