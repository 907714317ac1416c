"""What RULER's tasks share: random numbers of a sample, its length, the words, the lines of noise."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from functools import lru_cache

from namm.errors import ConfigurationError
from namm.tasks.base import Request, Sample
from namm.tasks.text import SPLITS, check_split, novel

SAMPLES = 500  # of each task and length, in RULER
SHORT = 4096  # tokens; RULER's smallest length, below which its examples are smaller
NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
_ADJECTIVE = re.compile(r"(ful|less|ous|able|ible|ical)$")
_NOUN = re.compile(r"(ness|ment|tion|sion|ship|hood|ance|ence|ity)$")
_ROUNDS = 12  # of the search for the length; four are usual

Make = Callable[[Request, int], Sample]
"""Makes a sample from its index."""


def stream(task: str, request: Request, index: int) -> random.Random:
    """The random numbers of a sample; they do not depend on how many samples are made, or how long they are."""
    return random.Random(f"{task}-{request.seed}-{request.split}-{index}")


def name_of(request: Request, index: int) -> str:
    """The id of a sample."""
    return f"{request.split}-{request.seed}-{request.tokens}-{index}"


def numbered(make: Make, request: Request) -> Iterator[Sample]:
    """Samples 0, 1, 2 and so on, made when they are asked for."""
    check_split(request.split)
    count = SAMPLES if request.count is None else request.count
    return (make(request, index) for index in range(count))


def longest(build: Callable[[int], Sample], request: Request, least: int, most: int) -> Sample:
    """The sample of as many pieces as fit into `request.tokens`, found by false position on whole prompts.

    Args:
        build: makes the sample of so many pieces.
        least: fewest pieces that a sample can have.
        most: pieces that there are.

    Raises:
        ConfigurationError: not even the fewest pieces fit.
    """

    def length(sample: Sample) -> int:
        return len(request.tokenizer.encode(sample.context + sample.question + sample.reply))

    best = build(least)
    bare = used = length(best)
    if bare > request.tokens:
        raise ConfigurationError(
            f"at least {bare} tokens for sample {best.id!r} of {best.task}", request.tokens, "Ask for longer prompts."
        )
    low, high, over = least, most + 1, 0
    guess = 2 * least + 16
    for turn in range(_ROUNDS):
        if high - low < 2:
            break
        guess = min(max(guess, low + 1), high - 1)
        sample = build(guess)
        size = length(sample)
        if size <= request.tokens:
            low, best, used = guess, sample, size
        else:
            high, over = guess, size
        rate = (over - used) / (high - low) if over else (used - bare) / (low - least)  # tokens of a piece
        step = (request.tokens - used) / max(rate, 0.1)
        if step < 1:
            break
        guess = (low + high) // 2 if over and turn % 3 == 2 else low + int(step)
    return best


@lru_cache(maxsize=1)
def vocabulary() -> tuple[str, ...]:
    """Lower-case words of 4 to 12 letters that the shipped novels use more than once, in alphabetical order."""
    counts = Counter(
        word
        for books in SPLITS.values()
        for book in books
        for word in re.findall(r"(?<![\w'-])[a-z]{4,12}(?![\w'-])", novel(book))
    )
    return tuple(sorted(word for word, count in counts.items() if count > 1))


@lru_cache(maxsize=1)
def adjectives() -> tuple[str, ...]:
    """Words that end as adjectives do."""
    return tuple(word for word in vocabulary() if _ADJECTIVE.search(word))


@lru_cache(maxsize=1)
def nouns() -> tuple[str, ...]:
    """Words that end as nouns do."""
    return tuple(word for word in vocabulary() if _NOUN.search(word))
