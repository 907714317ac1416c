"""Every error `namm` raises on purpose.

    NammError
    ├── ConfigurationError   an option, budget, interval or combination that cannot be met
    │   └── ScoreError       scores of a policy that are no numbers
    ├── ModelError           a model, cache or attention mask that a memory cannot serve
    ├── ArtefactError        a file that is damaged, altered or of another layout
    ├── RunError             a run that cannot go on: a full disk, workers that die, a fitness that tells nothing
    └── NotFoundError        a name, file or optional package that is not there

A message says what was expected, what came, and the way out.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class NammError(Exception):
    """Base of all errors of this package."""

    def __init__(self, expected: str, got: object, way_out: str) -> None:
        self.expected, self.got, self.way_out = expected, str(got), way_out
        super().__init__(f"expected {expected}; got {self.got}. {way_out}")

    def __reduce__(self) -> tuple[type[NammError], tuple[str, str, str]]:
        return type(self), (self.expected, self.got, self.way_out)


class ConfigurationError(NammError):
    """An option, budget, interval or combination that cannot be met."""


class ScoreError(ConfigurationError):
    """Scores of a policy that are no numbers."""


class ModelError(NammError):
    """A model, cache or attention mask that a memory cannot serve."""


class ArtefactError(NammError):
    """A file that is damaged, altered or of another layout."""


class RunError(NammError):
    """A run that cannot go on: a full disk, workers that die, a fitness that tells nothing."""


class NotFoundError(NammError):
    """A name, file or optional package that is not there."""


def reason(error: BaseException) -> str:
    """The first line of what `error` says, or its name where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def nearest(name: str, known: Iterable[str]) -> str:
    """The way out for an unknown `name`: the nearest known one, then all of them."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"Did you mean {close[0]!r}? " if close else ""
    return f"{hint}Known: {', '.join(known)}."
