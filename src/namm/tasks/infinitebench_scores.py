"""Scores of InfiniteBench, as `src/compute_scores.py` of github.com/OpenBMB/InfiniteBench (MIT) has them.

Each takes a prediction and the gold answers. Those of multiple choice have the letter of the right option last, after
its text. Differences: a prediction that makes the published code fail (no text at all, or "3.5" where a whole number is
right) scores 0, or is compared as a number.
"""

from __future__ import annotations

import re
from collections.abc import Callable

_DELIMITERS = str.maketrans(dict.fromkeys("\n:\"'.,?!{}", " "))
_CHOICE_DELIMITERS = str.maketrans(dict.fromkeys("\n\"'.,?!{}", " "))


def first_number(prediction: str, answers: tuple[str, ...], classes: tuple[str, ...] = ()) -> float:
    """1 if the first run of digits is the answer, digit for digit (passkey, number_string)."""
    found = re.search(r"[0-9]+", prediction)
    return float(found is not None and found[0] == answers[0])


def word(prediction: str, answers: tuple[str, ...], classes: tuple[str, ...] = ()) -> float:
    """1 if the answer is one of the words between punctuation and white space (kv_retrieval)."""
    return float(answers[0] in prediction.translate(_DELIMITERS).split())


def last_number(prediction: str, answers: tuple[str, ...], classes: tuple[str, ...] = ()) -> float:
    """1 if the last word is the answer, as a whole number (code_run)."""
    words = re.sub(r"[\n.`'\":]", " ", prediction).split()
    return float(bool(words) and re.fullmatch(r"[+-]?[0-9]+", words[-1]) is not None and _same(words[-1], answers[0]))


def number(prediction: str, answers: tuple[str, ...], classes: tuple[str, ...] = ()) -> float:
    """1 if the first number, its sign left out, is the answer (math_find)."""
    found = re.search(r"[0-9]+\.[0-9]+|[0-9]+", prediction)
    return float(found is not None and _same(found[0], answers[0]))


def leading_numbers(prediction: str, answers: tuple[str, ...], classes: tuple[str, ...] = ()) -> float:
    """Share of the answers, in their order, up to the first wrong number of the prediction (math_calc).

    Signs are dropped from the prediction only, as published: a negative value is never right.
    """
    predicted = re.findall(r"[0-9]+", prediction)
    right = 0
    for found, answer in zip(predicted, answers, strict=False):
        if int(found) != int(answer):
            break
        right += 1
    return right / len(answers)


def multiple_choice(prediction: str, answers: tuple[str, ...], classes: tuple[str, ...] = ()) -> float:
    """1 if the option chosen is right (longbook_choice_eng): answers are its text, if wanted, and its letter A to D."""
    text = prediction.strip()
    if _last_letter(text, "A-D") in answers:
        return 1.0
    if not text or text[0] in "ABCD":
        return float(text[:1] in answers)
    if text in answers:
        return 1.0
    text = _single_spaced(text.translate(_CHOICE_DELIMITERS))
    after = _after(text, ("answer is:", "answer:", "answer is", "option is"))
    if after is not None:
        return float(after.startswith(answers))
    return float(next((word for word in text.split() if word in "ABCD"), None) in answers)


def code_debug(prediction: str, answers: tuple[str, ...], classes: tuple[str, ...] = ()) -> float:
    """1 if the function chosen is right (code_debug): answers are its name and its letter."""
    name, letter = answers[0], answers[-1]
    text = prediction.strip()
    if _last_letter(text, "A-J") == letter:
        return 1.0
    text = _single_spaced(re.sub(r"[\n`'\"*-]|Option|option", " ", text))
    if text.startswith((letter, name)):
        return 1.0
    after = _after(text, ("answer is:", "is:", "answer:", "correct option is:"))
    return float(after is not None and after.startswith((letter, name)))


def _last_letter(text: str, letters: str) -> str | None:
    """The last letter that stands alone on the first line that has any."""
    found = re.search(rf"\b[{letters}]\b(?!.*\b[{letters}]\b)", text)
    return found[0] if found else None


def _after(text: str, phrases: tuple[str, ...]) -> str | None:
    """What follows the first of the phrases that occurs, without the character after it."""
    phrase = next((phrase for phrase in phrases if phrase in text), None)
    return None if phrase is None else text[text.find(phrase) + len(phrase) + 1 :]


def _single_spaced(text: str) -> str:
    return re.sub(" +", " ", text)


def _same(found: str, answer: str) -> bool:
    return float(found) == float(answer)


SCORES: dict[str, Callable[[str, tuple[str, ...], tuple[str, ...]], float]] = {
    "first_number": first_number,
    "word": word,
    "last_number": last_number,
    "number": number,
    "leading_numbers": leading_numbers,
    "multiple_choice": multiple_choice,
    "code_debug": code_debug,
}
