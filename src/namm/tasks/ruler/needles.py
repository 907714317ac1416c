"""RULER's eight needles in a haystack: `scripts/data/synthetic/niah.py` of NVIDIA/RULER."""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

from namm.errors import ArtefactError, ConfigurationError
from namm.json_files import read_json
from namm.tasks.base import Request, Sample, Task
from namm.tasks.ruler.shared import NOISE, adjectives, longest, name_of, nouns, numbered, stream
from namm.tasks.text import SENTENCE, SPLITS, check_split, paragraphs

CONTEXT = (
    "Some special magic {kind} are hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {kind} afterwards.\n{text}"
)
QUESTION = "\nWhat are all the special magic {kind} for {query} mentioned in the provided text?"
REPLY = " The special magic {kind} for {query} mentioned in the provided text are"
NEEDLE = "One of the special magic {kind} for {key} is: {value}."
DEPTHS = tuple(round(100 * step / 39) for step in range(40))  # per cent of the sentences before a needle in prose
_ESSAYS = "PaulGrahamEssays.json"


@dataclass(frozen=True)
class Needles:
    """A task of `synthetic.yaml`.

    Attributes:
        haystack: "repeat" for lines of noise, "essay" for prose, "needle" for needles of other keys.
        key_type: "words" or "uuids".
        value_type: "numbers" or "uuids".
    """

    haystack: str
    key_type: str = "words"
    value_type: str = "numbers"
    keys: int = 1
    values: int = 1
    queries: int = 1


KINDS = {
    "niah_single_1": (Needles("repeat"), "a number in repeated lines"),
    "niah_single_2": (Needles("essay"), "a number in prose"),
    "niah_single_3": (Needles("essay", value_type="uuids"), "a uuid in prose"),
    "niah_multikey_1": (Needles("essay", keys=4), "one of four numbers in prose"),
    "niah_multikey_2": (Needles("needle"), "one number among as many as fit"),
    "niah_multikey_3": (Needles("needle", "uuids", "uuids"), "the uuid of a uuid among as many as fit"),
    "niah_multivalue": (Needles("essay", values=4), "the four numbers of one key in prose"),
    "niah_multiquery": (Needles("essay", keys=4, queries=4), "the numbers of four keys in prose"),
}


class _Drawn:
    """Random keys and values, no two of them alike."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.seen: set[str] = set()

    def __call__(self, kind: str) -> str:
        while (found := _draw(kind, self.rng)) in self.seen:
            pass
        self.seen.add(found)
        return found


def _draw(kind: str, rng: random.Random) -> str:
    if kind == "numbers":
        return str(rng.randint(1_000_000, 9_999_999))
    if kind == "words":
        return f"{rng.choice(adjectives())}-{rng.choice(nouns())}"
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def make_sample(task: str, kind: Needles, prose: Sequence[str], official: bool, request: Request, index: int) -> Sample:
    """Sample `index`, as long as `request.tokens` allows.

    Args:
        prose: sentences of the haystack "essay".
        official: they are RULER's own essays, of which each sample reads the beginning.
    """

    def build(pieces: int) -> Sample:
        rng = stream(task, request, index)
        drawn = _Drawn(rng)
        facts = [(drawn(kind.key_type), [drawn(kind.value_type) for _ in range(kind.values)]) for _ in range(kind.keys)]
        needles = [_needle(kind, key, value) for key, values in facts for value in values]
        rng.shuffle(needles)
        asked = rng.sample(facts, kind.queries)
        if kind.haystack == "essay":
            start = 0 if official else rng.randrange(len(prose))
            text = _in_prose([prose[(start + step) % len(prose)] for step in range(pieces)], needles, rng)
        else:
            text = _in_lines(kind, pieces, needles, drawn)
        return _sample(task, kind, text, asked, name_of(request, index) + ("-essays" if official else ""))

    return longest(build, request, least=1, most=request.tokens)


def _needle(kind: Needles, key: str, value: str) -> str:
    return NEEDLE.format(kind=kind.value_type, key=key, value=value)


def _in_prose(sentences: list[str], needles: list[str], rng: random.Random) -> str:
    places = sorted(int(len(sentences) * depth / 100) for depth in rng.sample(DEPTHS, len(needles)))
    for place, needle in reversed(list(zip(places, needles, strict=True))):
        sentences.insert(place, needle)
    return " ".join(sentences)


def _in_lines(kind: Needles, pieces: int, needles: list[str], drawn: _Drawn) -> str:
    places = sorted((drawn.rng.random() for _ in needles), reverse=True)  # the same depth at every length
    lines = [NOISE] * pieces
    if kind.haystack == "needle":
        lines = [_needle(kind, drawn(kind.key_type), drawn(kind.value_type)) for _ in range(pieces)]
    for place, needle in zip(places, needles, strict=True):
        lines.insert(int(place * pieces), needle)
    return "\n".join(lines)


def _sample(task: str, kind: Needles, text: str, asked: list[tuple[str, list[str]]], name: str) -> Sample:
    keys = [key for key, _ in asked]
    answers = tuple(value for _, values in asked for value in values)
    query = f"{', '.join(keys[:-1])}, and {keys[-1]}" if len(keys) > 1 else keys[0]
    one = kind.queries * kind.values == 1
    templates = [_singular(template) for template in (CONTEXT, QUESTION, REPLY)] if one else [CONTEXT, QUESTION, REPLY]
    value_type = kind.value_type.removesuffix("s") if one else kind.value_type
    context, question, reply = (part.format(kind=value_type, query=query, text=text) for part in templates)
    return Sample(
        task=task, id=name, context=context, question=question, reply=reply, answers=answers, target=", ".join(answers),
        metric="string_match_all", max_new_tokens=128,
    )  # fmt: skip


def _singular(template: str) -> str:
    return template.replace("Some", "A").replace("are all", "is").replace("are", "is")


@lru_cache(maxsize=3)
def _novels(split: str) -> tuple[str, ...]:
    """The sentences of the split's novels."""
    return tuple(SENTENCE.split(" ".join(block for book in SPLITS[split] for block in paragraphs(book))))


def _essays(path: Path) -> tuple[str, ...]:
    """The sentences of Paul Graham's essays."""
    try:
        words = read_json(path, "")["text"].split()
    except (ArtefactError, KeyError, AttributeError) as error:
        raise _unreadable(path, f"{type(error).__name__}: {error}") from error
    if not words:
        raise _unreadable(path, "no text")
    return tuple(SENTENCE.split(" ".join(words)))


def _unreadable(path: Path, reason: str) -> ConfigurationError:
    way_out = "Make the file with download_paulgraham_essay.py of NVIDIA/RULER, or remove it to read novels."
    return ConfigurationError('RULER\'s essays, a JSON object {"text": "..."}', f"{path} ({reason})", way_out)


def _samples(task: str, kind: Needles, request: Request) -> Iterator[Sample]:
    prose: tuple[str, ...] = ()
    official = False
    if kind.haystack == "essay":
        essays = (request.data or Path()) / _ESSAYS
        official = request.data is not None and check_split(request.split) == "test" and essays.is_file()
        prose = _essays(essays) if official else _novels(check_split(request.split))
    return numbered(partial(make_sample, task, kind, prose, official), request)


TASKS = [
    Task(f"ruler/{name}", partial(_samples, f"ruler/{name}", kind), generated=True, description=description)
    for name, (kind, description) in KINDS.items()
]
