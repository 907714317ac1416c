"""The summary of an evaluation: a value, its JSON, and how its numbers are written."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

NONE = "-"


@dataclass(frozen=True)
class Estimate:
    """A mean and its 95 % bootstrap interval, whose ends are None where fewer than two contexts were measured."""

    mean: float
    low: float | None
    high: float | None

    @property
    def sure(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


@dataclass(frozen=True)
class Comparison:
    """A difference of NLL at equal bytes, negative where the policy is better, or why it is refused."""

    estimate: Estimate | None
    refused: str = ""


@dataclass(frozen=True)
class Scores:
    """What one policy did, on one task or overall. None: not measured.

    Attributes:
        n: samples measured.
        missing: samples that other policies or budgets have and this one has not.
        nll: nats per token of the gold reply; lower is better.
        exact: share of greedy replies that are the gold reply.
        score: mean of the task's own metric, 0 to 1.
        normalised: 0 as good as the first four tokens alone, 1 as good as the full cache.
        to_full: NLL above the full cache's.
        score_to_full: score above the full cache's.
        against: NLL above each baseline's, at equal bytes.
        gap_closed: share of the way from the best heuristic to the oracle; `gap_refused` says why there is none.
        bytes_share: bytes held over bytes of the full cache; `bytes_range` the least and most over samples.
        slots_share: slots kept over slots of the full cache.
        peak_share: most bytes held at a time over bytes of the full cache.
        seconds: for a sample.
    """

    n: int
    missing: int
    nll: float | None
    exact: float | None
    score: float | None
    normalised: Estimate | None
    to_full: Estimate | None
    score_to_full: Estimate | None
    against: dict[str, Comparison]
    gap_closed: Estimate | None
    gap_refused: str
    bytes_share: float | None
    bytes_range: tuple[float, float] | None
    slots_share: float | None
    peak_share: float | None
    seconds: float | None


@dataclass(frozen=True)
class Line:
    """One policy. `kind` is "full", "floor", "oracle", "truncated", "random", "heuristic" or "learned"."""

    policy: str
    kind: str
    overall: Scores
    tasks: dict[str, Scores]


@dataclass(frozen=True)
class Group:
    """One table: all policies that had the same protocol, template, length and budget, with full and floor.

    Attributes:
        tokens: context length asked for; 0 for texts as they come.
        budget: share of the full cache's bytes, "own", or None if no policy had one.
        tasks: name to metric.
        samples: of all tasks together.
        short_spans: of `spans` samples with full and floor, those left out of normalised means.
    """

    protocol: str
    template: str
    tokens: int
    budget: float | str | None
    tasks: dict[str, str]
    lines: tuple[Line, ...]
    best_heuristic: str | None
    samples: int
    short_spans: int
    spans: int
    notes: tuple[str, ...]

    @property
    def metric(self) -> str:
        """The metric's name if all tasks have the same, else "score"."""
        names = set(self.tasks.values())
        return names.pop() if len(names) == 1 else "score"

    @property
    def setting(self) -> str:
        return f"{self.protocol}, {length(self.tokens)}, {self.template} template"

    @property
    def allowance(self) -> str:
        if self.budget is None:
            return "no budget"
        if isinstance(self.budget, str):
            return "own thresholds"
        return f"{share(self.budget)} of the bytes"


@dataclass(frozen=True)
class Summary:
    """All tables of an evaluation, what it was asked to do, and every value found of commit, versions and hardware."""

    groups: tuple[Group, ...]
    config: dict[str, Any]
    provenance: dict[str, tuple[str, ...]]
    rows: int
    draws: int


def to_json(summary: Summary) -> str:
    """The summary as JSON; what was not measured is null."""
    return json.dumps(dataclasses.asdict(summary), indent=1, allow_nan=False, default=str) + "\n"


def label(policy: str) -> str:
    """How a policy is called in tables: a NAMM by its name or the end of its path."""
    plain = {"full": "full cache", "floor": "floor (first 4 tokens)", "truncated": "truncated prompt"}
    if policy.startswith("builtin:"):
        return f"NAMM {policy.removeprefix('builtin:')}"
    if "/" in policy or "\\" in policy:
        return f"NAMM {'/'.join(PurePath(policy.replace(chr(92), '/')).parts[-2:])}"
    return {**plain, "streaming": "streaming (recency)"}.get(policy, policy)


def length(tokens: int) -> str:
    return f"{tokens:,} tokens" if tokens else "texts as they come"


def number(value: float | None, places: int = 2, sign: bool = False) -> str:
    """Rounded, without a negative zero."""
    if value is None:
        return NONE
    rounded = round(value, places) + 0.0
    return f"{rounded:{'+' if sign else ''}.{places}f}"


def share(value: float | None) -> str:
    """In per cent, with a decimal where there is one."""
    return NONE if value is None else f"{value:.1%}".replace(".0%", "%").replace("%", " %")


def estimate(value: Estimate | None, sign: bool = False) -> str:
    """Mean and interval, such as "+0.12 [+0.08, +0.17]"."""
    if value is None:
        return NONE
    if value.low is None:
        return number(value.mean, sign=sign)
    return f"{number(value.mean, sign=sign)} [{number(value.low, sign=sign)}, {number(value.high, sign=sign)}]"
