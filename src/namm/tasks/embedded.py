"""The embedded suite: tasks made offline from novels and code, of any length, the same for the same seed.

| task | asks for | after |
| --- | --- | --- |
| passkey | a five-digit number, said twice in one place | arXiv 2305.16300 |
| niah_single, niah_word | the number, or the word, hidden under a name | RULER, arXiv 2404.06654 |
| niah_multikey | one of four numbers under four names | RULER |
| niah_multivalue | all three numbers under one name | RULER |
| niah_multiquery | two of four numbers at once | RULER |
| vartrack | the value of a variable, two assignments away, beside another chain | RULER |
| quote | how a sentence of the text goes on | |
| character | the name that comes next, last said long ago | LAMBADA, arXiv 1606.06031 |
| lm_prose, lm_code | the next 128 tokens of a novel, of a module | |

`niah_word` and the last four go on with the text itself and are never put into a chat template.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

from transformers import PreTrainedTokenizerBase

from namm.errors import ConfigurationError, nearest
from namm.tasks.base import Request, Sample, Task
from namm.tasks.text import check_split, code, passage

_NAMES = ("harbour", "lantern", "orchard", "falcon", "velvet", "copper", "meadow", "glacier", "saffron", "compass")
WORDS = (
    "elephant",
    "umbrella",
    "chocolate",
    "mountain",
    "bicycle",
    "dragon",
    "piano",
    "tomato",
    "rocket",
    "penguin",
    "blanket",
    "diamond",
    "kitchen",
    "thunder",
    "pumpkin",
    "castle",
    "monkey",
    "garlic",
    "violin",
    "tractor",
)
_CONTINUED = 128  # tokens of a language-modelling answer
_SHORTEST = 256  # tokens; with less, the facts of a task leave no room for a text
_TITLES = {"Mrs", "Miss", "Sir", "Lady", "Captain", "Admiral", "Colonel", "Lord"}


@dataclass(frozen=True)
class _Draft:
    """What a task makes a sample from."""

    rng: random.Random
    split: str
    tokens: int
    tokenizer: PreTrainedTokenizerBase

    def passage(self, tokens: int) -> list[str]:
        """Sentences of a novel from a random place on, of at most so many tokens together."""
        return passage(self.split, tokens, self.tokenizer, self.rng)

    def haystack(self, lines: list[str]) -> list[str]:
        """A passage that leaves room for `lines`."""
        return self.passage(self.tokens - sum(len(self.tokenizer.encode(line)) for line in lines))

    def beginning(self, text: str, tokens: int) -> str:
        """The first tokens of a text."""
        if not self.tokenizer.is_fast:
            return self.tokenizer.decode(self.tokenizer.encode(text, add_special_tokens=False)[:tokens])
        places = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        return text[: places[:tokens][-1][1]]


_Parts = dict[str, Any]
"""Fields of a `Sample`: context, question, answers and so on."""


def passkey(draft: _Draft) -> _Parts:
    key = str(draft.rng.randint(10000, 99999))
    fact = f"The pass key is {key}. Remember it. {key} is the pass key. "
    text = _hidden(draft.rng, draft.haystack([fact]), [fact])
    return _asked(text, "What is the pass key?", "The pass key is", [key])


def _niah(draft: _Draft, *, keys: int = 1, values: int = 1, asked: int = 1, kind: str = "number") -> _Parts:
    rng = draft.rng
    names = rng.sample(_NAMES, keys)
    words = iter(rng.sample(WORDS, keys * values))
    facts = [
        (key, next(words) if kind == "word" else str(rng.randint(1000000, 9999999)))
        for key in names
        for _ in range(values)
    ]
    rng.shuffle(facts)
    lines = [f"The special {kind} of the {key} is {value}. " for key, value in facts]
    text = _hidden(rng, draft.haystack(lines), lines)
    chosen = rng.sample(names, asked)
    answers = [value for name in chosen for key, value in facts if key == name]  # values in the order of the text
    which = _listed([f"the {name}" for name in chosen])
    if len(answers) == 1:
        return _asked(text, f"What is the special {kind} of {which}?", f"The special {kind} of {which} is", answers)
    return _asked(text, f"What are the special {kind}s of {which}?", f"The special {kind}s of {which} are", answers)


def _vartrack(draft: _Draft) -> _Parts:
    rng = draft.rng
    names = [f"{letter}{rng.randint(10, 99)}" for letter in rng.sample("ABCDEFGHJKLMNPQRSTUVWXYZ", 6)]
    values = [str(rng.randint(10000, 99999)) for _ in range(2)]
    chains = [
        [f"Let {a} be {value}. ", f"Let {b} be equal to {a}. ", f"Let {c} be equal to {b}. "]
        for value, (a, b, c) in zip(values, (names[:3], names[3:]), strict=True)
    ]
    text = draft.haystack([line for chain in chains for line in chain])
    for chain in chains:
        text = _hidden(rng, text, chain)
    which = rng.randrange(2)
    last = names[3 * which + 2]
    return _asked(text, f"What is the value of {last}?", f"The value of {last} is", [values[which]])


def _quote(draft: _Draft) -> _Parts:
    text = draft.passage(draft.tokens)
    long = [sentence for sentence in text[:-2] if len(sentence.split()) >= 18]
    words = draft.rng.choice(long or [max(text, key=len)]).split()
    return {
        "context": "".join(text).rstrip(),
        "answers": (" ".join(words[8:20]),),
        "question": f"\n\nAs was said above: {' '.join(words[:8])}",
    }


def _character(draft: _Draft) -> _Parts:
    """The context ends before the name of someone whom it mentions, but not in its last third."""
    for _ in range(100):
        story = "".join(draft.passage(2 * draft.tokens))
        length = len(story) * 9 // 20  # characters of a context; a little less than half of the tokens drawn
        found = [
            (place, name)
            for name, places in _mentions(story).items()
            for before, place in pairwise(places)
            if place > length and place - length + 20 < before < place - length // 3
        ]
        if found:
            place, name = draft.rng.choice(sorted(found))
            start = story.index(" ", place - length) + 1
            return {"context": story[start:place].rstrip(), "question": "", "answers": (name,)}
    raise ConfigurationError("a text with names in it", f"none in {draft.tokens} tokens", "Ask for longer contexts.")


def _lm_prose(draft: _Draft) -> _Parts:
    return _continued(draft, draft.passage)


def _lm_code(draft: _Draft) -> _Parts:
    return _continued(draft, lambda tokens: code(draft.split, tokens, draft.tokenizer, draft.rng))


def _continued(draft: _Draft, source: Callable[[int], list[str]]) -> _Parts:
    text = "".join(source(2 * draft.tokens + 4 * _CONTINUED))  # a passage ends before a sentence that is too long
    context = draft.beginning(text, draft.tokens)
    return {"context": context, "question": "", "answers": (draft.beginning(text[len(context) :], _CONTINUED),)}


def _asked(text: list[str], question: str, reply: str, answers: list[str]) -> _Parts:
    return {
        "context": "".join(text).rstrip(),
        "question": f"\n\n{question}",
        "reply": reply,
        "answers": tuple(answers),
        "target": _listed(answers),
    }


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _hidden(rng: random.Random, sentences: list[str], lines: list[str]) -> list[str]:
    """Lines, in their order, at random places between sentences; not after the last one, which all memories hold."""
    places = sorted(rng.randrange(len(sentences)) for _ in lines)
    result = list(sentences)
    for place, line in reversed(list(zip(places, lines, strict=True))):
        result.insert(place, line)
    return result


def _mentions(story: str) -> dict[str, list[int]]:
    """Names in the middle of sentences, and where they stand."""
    places: dict[str, list[int]] = {}
    for mention in re.finditer(r"(?<=[a-z,;] )[A-Z][a-z]{2,}", story):
        if mention.group() not in _TITLES:
            places.setdefault(mention.group(), []).append(mention.start())
    return places


_KINDS: dict[str, tuple[Callable[[_Draft], _Parts], bool, str]] = {
    "passkey": (passkey, False, "a five-digit number, said twice in one place of a novel"),
    "niah_single": (_niah, False, "the one number hidden under a name"),
    "niah_word": (partial(_niah, kind="word"), True, "the one word hidden under a name"),
    "niah_multikey": (partial(_niah, keys=4), False, "one of four numbers under four names"),
    "niah_multivalue": (partial(_niah, values=3), False, "all three numbers under one name"),
    "niah_multiquery": (partial(_niah, keys=4, asked=2), False, "two of four numbers at once"),
    "vartrack": (_vartrack, False, "the value of a variable, two assignments away"),
    "quote": (_quote, True, "how a sentence of the text goes on"),
    "character": (_character, True, "the name that comes next, last said long ago"),
    "lm_prose": (_lm_prose, True, "the next 128 tokens of a novel"),
    "lm_code": (_lm_code, True, "the next 128 tokens of a module of Python's library"),
}


def make_sample(
    task: str, split: str, index: int, tokens: int, tokenizer: PreTrainedTokenizerBase, seed: int = 0
) -> Sample:
    """Sample `index` of a task: the same arguments give the same sample, and splits share no text and no seed.

    Args:
        task: a name of the table above.
        split: "train", "validation" or "test".
        tokens: most tokens of the context; a little less is used.

    Raises:
        ConfigurationError: no such task or split, or too few tokens.
    """
    if task not in _KINDS:
        raise ConfigurationError("a task of the embedded suite", repr(task), nearest(task, _KINDS))
    if tokens < _SHORTEST:
        raise ConfigurationError(f"contexts of at least {_SHORTEST} tokens", tokens, "Ask for longer ones.")
    make, completion, _ = _KINDS[task]
    rng = random.Random(f"{seed}/{task}/{check_split(split)}/{tokens}/{index}")
    parts = make(_Draft(rng, split, tokens, tokenizer))
    return Sample(task=task, id=f"{split}/{seed}/{index}", completion=completion, **parts)


def _samples(task: str, request: Request) -> Iterator[Sample]:
    for index in range(request.count if request.count is not None else 24):
        yield make_sample(task, request.split, index, request.tokens, request.tokenizer, request.seed)


TASKS = {
    name: Task(name, partial(_samples, name), generated=True, description=description)
    for name, (_, _, description) in _KINDS.items()
}
