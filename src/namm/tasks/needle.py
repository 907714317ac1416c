"""Needles in a novel: a fact in a long text, and a question about it after the text.

`passkey` hides one five-digit number; `needle` hides four seven-digit numbers under four names and asks for one.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from namm.errors import ConfigurationError, nearest
from namm.tasks.text import SPLITS, paragraphs

NAMES = ("harbour", "lantern", "orchard", "falcon", "velvet", "copper", "meadow", "glacier", "saffron", "compass")


@dataclass(frozen=True)
class Sample:
    """A prompt, its answer, and how the model's reply begins.

    Attributes:
        prompt: text and question as one user turn.
        reply: what the assistant's turn starts with, up to the answer.
        answer: the gold answer.
    """

    task: str
    prompt: str
    reply: str
    answer: str


def passkey(rng: random.Random, filler: list[str]) -> Sample:
    key = str(rng.randint(10000, 99999))
    needle = f"The pass key is {key}. Remember it. {key} is the pass key."
    text = _hide(rng, filler, [needle])
    return Sample("passkey", f"{text}\n\nWhat is the pass key?", "The pass key is", key)


def needle(rng: random.Random, filler: list[str], count: int = 4) -> Sample:
    names = rng.sample(NAMES, count)
    numbers = [str(rng.randint(1000000, 9999999)) for _ in names]
    needles = [f"The special number of {a} is {b}." for a, b in zip(names, numbers, strict=True)]
    chosen = rng.randrange(count)
    question = f"What is the special number of {names[chosen]}?"
    reply = f"The special number of {names[chosen]} is"
    return Sample("needle", f"{_hide(rng, filler, needles)}\n\n{question}", reply, numbers[chosen])


TASKS = {"passkey": passkey, "needle": needle}


def make_sample(
    task: str, split: str, index: int, tokens: int, tokenizer: PreTrainedTokenizerBase, seed: int = 0
) -> Sample:
    """Sample `index` of a task: the same arguments give the same sample, and splits share no text and no seed.

    Args:
        task: "passkey" or "needle".
        split: "train", "validation" or "test".
        tokens: about how many tokens of text surround the needles.
    """
    if task not in TASKS:
        raise ConfigurationError("a task", repr(task), nearest(task, TASKS))
    if split not in SPLITS:
        raise ConfigurationError("a split", repr(split), nearest(split, SPLITS))
    rng = random.Random(f"{seed}/{task}/{split}/{index}")
    book = paragraphs(rng.choice(SPLITS[split]))
    start = rng.randrange(len(book))
    filler: list[str] = []
    held = 0
    for step in range(len(book)):
        paragraph = book[(start + step) % len(book)]
        length = len(tokenizer.encode(paragraph, add_special_tokens=False))
        if held + length > tokens and held > 0:
            break
        filler.append(paragraph)
        held += length
    return TASKS[task](rng, filler)


def encode(sample: Sample, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Token ids of the prompt in chat format up to the answer, and of the answer.

    A bare space that the tokenizer splits off the answer belongs to the prompt, so that it is not scored.
    """
    chat = [{"role": "user", "content": sample.prompt}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False) + sample.reply
    ids = tokenizer.encode(prompt, add_special_tokens=False)
    answer = tokenizer.encode(f" {sample.answer}", add_special_tokens=False)
    while answer and not tokenizer.decode(answer[:1]).strip():
        ids, answer = ids + answer[:1], answer[1:]
    return ids, answer


def _hide(rng: random.Random, filler: list[str], needles: list[str]) -> str:
    """Needles at random places between the sentences of the filler."""
    sentences = [s for paragraph in filler for s in paragraph.replace("? ", "?\0").replace(". ", ".\0").split("\0")]
    for line in needles:
        sentences.insert(rng.randint(0, len(sentences)), line)
    return " ".join(sentences)
