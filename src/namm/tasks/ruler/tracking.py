"""RULER's variable tracking: `scripts/data/synthetic/variable_tracking.py` of NVIDIA/RULER."""

from __future__ import annotations

import random
import string
from functools import partial
from itertools import pairwise

from namm.tasks.base import Request, Sample, Task
from namm.tasks.ruler.shared import NOISE, SHORT, longest, name_of, numbered, stream

NAME = "ruler/vt"
CONTEXT = "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n{text}"
QUESTION = "\nQuestion: Find all variables that are assigned the value {query} in the text above."
REPLY = (
    " Answer: According to the chain(s) of variable assignment in the text above, "
    "{count} variables are assigned the value {query}, they are: "
)
_HOPS = 4
LEAST = _HOPS + 2  # lines of noise, so that the assignments stand at distinct places


def make_sample(request: Request, index: int) -> Sample:
    """Sample `index`: an example of variables of three letters, then the question, of variables of five."""

    def build(lines: int) -> Sample:
        rng = stream(NAME, request, index)
        value, shown = (str(number) for number in rng.sample(range(10000, 99999), 2))
        example, variables = _text(rng, shown, letters=3, lines=LEAST if request.tokens < SHORT else 10)
        text, answers = _text(rng, value, letters=5, lines=lines)
        parts = [part.format(text=example, query=shown, count=_HOPS + 1) for part in (CONTEXT, QUESTION, REPLY)]
        return Sample(
            task=NAME, id=name_of(request, index), answers=tuple(answers), target=" ".join(answers),
            context=f"{''.join(parts)} {' '.join(variables)}\n\n\n\n{CONTEXT.format(text=text)}",
            question=QUESTION.format(query=value), reply=REPLY.format(query=value, count=_HOPS + 1),
            metric="string_match_all", max_new_tokens=30,
        )  # fmt: skip

    return longest(build, request, least=LEAST, most=request.tokens)


def _text(rng: random.Random, value: str, letters: int, lines: int) -> tuple[str, list[str]]:
    """Noise with a chain of assignments at random places, in order, and the chain's variables."""
    variables: list[str] = []
    while len(variables) <= _HOPS:
        name = "".join(rng.choices(string.ascii_uppercase, k=letters))
        if name not in variables:
            variables.append(name)
    chain = [f"VAR {variables[0]} = {value}"]
    chain += [f"VAR {name} = VAR {before} " for before, name in pairwise(variables)]
    pieces = [f"{NOISE}\n"] * lines
    places = sorted(rng.sample(range(lines), len(chain)))
    for place, assignment in reversed(list(zip(places, chain, strict=True))):
        pieces.insert(place, assignment)
    return " ".join(pieces), variables


TASK = Task(NAME, partial(numbered, make_sample), generated=True, description="the five variables that share a value")
