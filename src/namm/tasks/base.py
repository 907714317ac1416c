"""What a task is: samples of a context, a question and gold answers, and how they become tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from namm.errors import ConfigurationError

_TEMPLATES = ("auto", "chat", "raw")


@dataclass(frozen=True)
class Sample:
    """One prompt with its gold answers. The prompt is `context + question + reply`, nothing is put between them.

    Attributes:
        task: full name of the task.
        id: names the sample within its task; the same id is the same sample, always.
        context: what is read first: instructions, if any, and the text.
        question: what comes after the text, its leading line breaks included.
        reply: how the model's answer begins; part of the prompt.
        answers: gold answers; what several of them mean is the metric's affair.
        target: the gold reply as one text, for the likelihood; the first answer if left out.
        metric: name in `metrics.METRICS`; "exact" needs no decoding.
        max_new_tokens: length of a generated answer.
        completion: the text goes on by itself and is never put into a chat template.
        classes: all labels, for classification.
        whole: nothing may be taken out of a prompt that a model cannot read; it is refused.
    """

    task: str
    id: str
    context: str
    question: str
    answers: tuple[str, ...]
    reply: str = ""
    target: str = ""
    metric: str = "exact"
    max_new_tokens: int = 32
    completion: bool = False
    classes: tuple[str, ...] = ()
    whole: bool = False

    def __post_init__(self) -> None:
        if not self.answers or not all(self.answers):
            raise ConfigurationError(
                "at least one answer, none of them empty",
                f"{self.answers!r} in sample {self.id!r} of {self.task}",
                "Repair or drop this sample.",
            )
        if self.metric == "exact" and len(self.answers) > 1 and not self.target:
            got = f"{self.answers!r} in sample {self.id!r} of {self.task}"
            raise ConfigurationError(
                'one answer, or a target, for the metric "exact"',
                got,
                'Name a metric such as "qa_f1", for which any of the answers counts.',
            )

    @property
    def gold(self) -> str:
        """The text whose likelihood is measured."""
        return self.target or self.answers[0]


@dataclass(frozen=True)
class Request:
    """Which samples are wanted.

    Attributes:
        tokenizer: measures lengths.
        split: "train", "validation" or "test"; tasks with one published split have "test" only.
        count: how many, from the first; None for all of a task that ends.
        tokens: length of the context that a generator aims at; loaded texts come whole (`encode` shortens them).
        seed: of a generator.
        data: local folder with the files of a published benchmark, in the official layout; None asks the hub.
    """

    tokenizer: PreTrainedTokenizerBase
    split: str = "test"
    count: int | None = 24
    tokens: int = 1024
    seed: int = 0
    data: Path | None = None


@dataclass(frozen=True)
class Task:
    """A named source of samples.

    Attributes:
        name: such as "passkey" or "longbench/hotpotqa".
        samples: makes or loads what a request asks for, in a fixed order.
        generated: whether samples of any length can be made; otherwise texts come as they are.
        description: one line for `namm eval --list`.
    """

    name: str
    samples: Callable[[Request], Iterable[Sample]]
    generated: bool
    description: str


@dataclass(frozen=True)
class Encoded:
    """A sample as token ids: the memory reads `context`; `question` ends where the answer begins.

    Attributes:
        template: "chat" or "raw", as it was applied.
        removed: tokens taken out of the middle of the prompt to make it fit.
        moved: tokens at the end of `question` that are a bare space of the answer's.
    """

    sample: Sample
    context: tuple[int, ...]
    question: tuple[int, ...]
    answer: tuple[int, ...]
    template: str
    removed: int = 0
    moved: int = 0

    @property
    def prompt(self) -> tuple[int, ...]:
        return self.context + self.question


def encode(
    sample: Sample, tokenizer: PreTrainedTokenizerBase, template: str = "auto", longest: int | None = None
) -> Encoded:
    """Token ids of a sample.

    A bare space that the tokenizer splits off the answer belongs to the prompt, so that it is not scored. A chat
    template is filled as kvpress does it: the text stands as it is between what the template puts before and after a
    turn, and a model that can think aloud is told to answer at once.

    Args:
        template: "chat" puts the prompt into the tokenizer's chat template, "raw" leaves it; "auto" takes the
            template if there is one. Completions are always raw.
        longest: most tokens of prompt and answer together; the middle of a longer prompt is removed, as LongBench does.

    Raises:
        ConfigurationError: a chat template is asked for and there is none, or the sample cannot be made to fit, or may
            not be.
    """
    if template not in _TEMPLATES:
        raise ConfigurationError(f"a template of {', '.join(_TEMPLATES)}", repr(template), "Try auto.")
    if template == "chat" and not tokenizer.chat_template:
        raise ConfigurationError(
            "a tokenizer with a chat template",
            f"{type(tokenizer).__name__} without one",
            'Use template "raw", or a model tuned for chat.',
        )
    chat = template != "raw" and bool(tokenizer.chat_template) and not sample.completion
    text, cut = sample.context + sample.question, len(sample.context)
    if chat:
        start, end = _around_a_turn(tokenizer)
        text, cut = start + text + end, len(start) + cut
    prompt = text + sample.reply
    ids = tokenizer.encode(prompt, add_special_tokens=not chat)
    boundary = _common(ids, tokenizer.encode(prompt[:cut], add_special_tokens=not chat))
    gold = sample.gold if not prompt or prompt[-1].isspace() or sample.gold[0].isspace() else f" {sample.gold}"
    answer = tokenizer.encode(gold, add_special_tokens=False)
    before = len(ids)
    while answer and not sample.gold[0].isspace() and not tokenizer.decode(answer[:1]).strip():
        ids, answer = ids + answer[:1], answer[1:]
    if not answer:
        raise ConfigurationError(
            "an answer of at least one token",
            f"{gold!r} in sample {sample.id!r} of {sample.task}",
            "Repair the sample.",
        )
    moved = len(ids) - before
    ids, boundary, removed = _shortened(sample, ids, boundary, answer, longest)
    return Encoded(
        sample, tuple(ids[:boundary]), tuple(ids[boundary:]), tuple(answer), "chat" if chat else "raw", removed, moved
    )


def _around_a_turn(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """What the chat template puts before and after what a user says."""
    said = "#" * 32
    turn = [{"role": "user", "content": said}]
    whole = tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False, enable_thinking=False)
    before, found, after = whole.partition(said)
    if not found:
        raise ConfigurationError("a chat template that holds what a user says", repr(whole), 'Use template "raw".')
    return before, after


def _common(a: list[int], b: list[int]) -> int:
    """Length of the common start."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _shortened(
    sample: Sample, ids: list[int], boundary: int, answer: list[int], longest: int | None
) -> tuple[list[int], int, int]:
    room = len(ids) if longest is None else longest - max(len(answer), sample.max_new_tokens)
    if len(ids) <= room:
        return ids, boundary, 0
    if sample.whole:
        raise ConfigurationError(
            f"a model that reads {len(ids) - room} tokens more, since {sample.task} is asked whole",
            f"one that reads {longest}, and sample {sample.id!r}",
            "Take a model with a longer context, or a task of shorter texts.",
        )
    head, removed = room // 2, len(ids) - room
    if room < 2 or boundary < head + removed:
        after = len(ids) - boundary
        raise ConfigurationError(
            f"a sample that fits into {longest} tokens when the middle of its context is removed",
            f"{len(ids)} tokens, {after} of them after the context, in sample {sample.id!r} of {sample.task}",
            "Allow longer prompts, or use a model with a longer context.",
        )
    return ids[:head] + ids[head + removed :], boundary - removed, removed
