"""RULER's common and frequent words: `common_words_extraction.py` and `freq_words_extraction.py` of NVIDIA/RULER."""

from __future__ import annotations

import math
import random
import string
from collections.abc import Iterable
from functools import partial

from namm.tasks.base import Request, Sample, Task
from namm.tasks.ruler.shared import SHORT, longest, name_of, numbered, stream, vocabulary

CWE, FWE = "ruler/cwe", "ruler/fwe"
_CWE_CONTEXT = (
    "Below is a numbered list of words. In these words, some appear more often than others. "
    "Memorize the ones that appear most often.\n{text}"
)
_CWE_QUESTION = "\nQuestion: What are the 10 most common words in the above list?"
_CWE_REPLY = " Answer: The top 10 words that appear most often in the list are:"
_COMMON_WORDS = 10
_FWE_CONTEXT = (
    "Read the following coded text and track the frequency of each coded word. "
    "Find the three most frequently appeared coded words. {text}"
)
_FWE_QUESTION = (
    "\nQuestion: Do not provide any explanation. Please ignore the dots '....'. "
    "What are the three most frequently appeared words in the above coded text?"
)
_FWE_REPLY = " Answer: According to the coded text above, the three most frequently appeared words are:"
ALPHA, ZETA = 2.0, math.pi**2 / 6  # word of rank k: a share of k^-alpha / zeta(alpha)
_FWE_LEAST = 80  # words; with fewer, two of the first ranks may be equally frequent


def _common_words(request: Request, index: int) -> Sample:
    """Sample `index` of cwe: an example, then a list in which ten words appear 30 times and the others 3 times.

    Below 4096 tokens, six times and once, after a smaller example.
    """
    short = request.tokens < SHORT
    shown, often, seldom = (20, 3, 1) if short else (40, 10, 3)
    many, few = (6, 1) if short else (30, 3)

    def build(words: int) -> Sample:
        rng = stream(CWE, request, index)
        example, shown_answers = _list(rng, rng.sample(vocabulary(), shown), often, seldom)
        chosen = rng.sample(vocabulary(), len(vocabulary()))[:words]  # longer lists begin with the same words
        text, answers = _list(rng, chosen, many, few)
        shot = f"{_CWE_CONTEXT.format(text=example)}{_CWE_QUESTION}{_CWE_REPLY}{_numbered(shown_answers)}\n"
        parts = (shot + _CWE_CONTEXT.format(text=text), _CWE_QUESTION, _CWE_REPLY)
        return _sample(CWE, name_of(request, index), parts, answers, _numbered(answers), 120)  # as in the example

    return longest(build, request, least=_COMMON_WORDS + 1, most=len(vocabulary()))


def _frequent_words(request: Request, index: int) -> Sample:
    """Sample `index` of fwe: made-up words by Zipf's law; the most frequent is noise, the next three are the answer."""

    def build(words: int) -> Sample:
        rng = stream(FWE, request, index)
        coded = ["...", *_coded(rng, max(request.tokens // 50, 10) - 1)]
        text = [word for rank, word in enumerate(coded, 1) for _ in range(int(words * rank**-ALPHA / ZETA))]
        rng.shuffle(text)
        parts = (_FWE_CONTEXT.format(text=" ".join(text)), _FWE_QUESTION, _FWE_REPLY)
        return _sample(FWE, name_of(request, index), parts, coded[1:4], ", ".join(coded[1:4]), 50)

    return longest(build, request, least=_FWE_LEAST, most=2 * request.tokens)


def _list(rng: random.Random, words: list[str], often: int, seldom: int) -> tuple[str, list[str]]:
    """A numbered list in which the first ten words appear often, and those words."""
    common, others = words[:_COMMON_WORDS], words[_COMMON_WORDS:]
    entries = common * often + others * seldom
    rng.shuffle(entries)
    return _numbered(entries), common


def _numbered(words: Iterable[str]) -> str:
    return " ".join(f"{number}. {word}" for number, word in enumerate(words, 1))


def _coded(rng: random.Random, count: int) -> list[str]:
    """Distinct words of six random letters."""
    words: dict[str, None] = {}
    while len(words) < count:
        words["".join(rng.choices(string.ascii_lowercase, k=6))] = None
    return list(words)


def _sample(
    task: str, name: str, parts: tuple[str, str, str], answers: list[str], target: str, max_new_tokens: int
) -> Sample:
    context, question, reply = parts
    return Sample(
        task=task, id=name, context=context, question=question, reply=reply, answers=tuple(answers),
        target=target, metric="string_match_all", max_new_tokens=max_new_tokens,
    )  # fmt: skip


COMMON = Task(CWE, partial(numbered, _common_words), generated=True, description="the ten most common words of a list")
FREQUENT = Task(FWE, partial(numbered, _frequent_words), generated=True, description="the three most frequent words")
