"""The table of a video evaluation: accuracy over bytes, with intervals over clips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from namm.report import Estimate, Row, estimate, interval, kind, label, number, resample, share, table

_NAMES = {"fewer-frames": "fewer frames, evenly chosen", "floor": "first 4 tokens and the last"}


@dataclass(frozen=True)
class Table:
    """One length at one budget: a line for each policy, as text."""

    title: str
    headings: list[str]
    lines: list[list[str]]
    above: list[list[str]]
    """For each other policy that held the same bytes, how far each of the learned memories is above it."""
    learned: list[str]


def tables(rows: Sequence[Row], unit: str = "frames") -> list[Table]:
    """For each length and budget a table: accuracy, paired difference to the full cache, accuracy of each kind.

    Intervals are 95 %, from a bootstrap over clips; the questions about one clip are drawn together.

    Args:
        unit: what a length counts.
    """
    found = []
    for length in sorted({row["tokens"] for row in rows}):
        here = [row for row in rows if row["tokens"] == length]
        budgets = dict.fromkeys(row["budget"] for row in here if row["budget"] is not None)
        for budget in sorted(budgets, key=lambda b: (isinstance(b, str), -b if isinstance(b, float) else 0)):
            mine = [row for row in here if row["budget"] in (None, budget)]
            found.append(_table(_title(here, length, unit, budget), mine))
    return found


def to_markdown(rows: Sequence[Row], unit: str = "frames") -> str:
    """All `tables`, one below the other."""
    parts = []
    for t in tables(rows, unit):
        parts.append(f"### {t.title}\n\n{table(t.headings, t.lines)}")
        if t.above:
            parts.append("Accuracy above each at equal bytes, paired:\n\n" + table(["", *t.learned], t.above))
    return "\n".join(parts)


def _mean_of(values: Sequence[float], rows: Sequence[Row]) -> Estimate:
    """Mean of a value of each row, with its interval; no interval where there is one clip only."""
    drawn = resample(np.array(values, dtype=float)[:, None], [row["clip"] for row in rows])
    low, high = interval(drawn)[:, 0]
    return Estimate(float(drawn.mean[0]), *(None if np.isnan(end) else float(end) for end in (low, high)))


def _title(rows: Sequence[Row], length: int, unit: str, budget: float | str) -> str:
    clips = len({row["clip"] for row in rows})
    tokens = round(float(np.mean([row["clip_tokens"] for row in rows])))
    allowed = "own thresholds" if isinstance(budget, str) else f"{share(budget)} of the bytes"
    return f"{clips} clips of {length} {unit} ({tokens} tokens), {allowed}"


def _table(title: str, rows: Sequence[Row]) -> Table:
    kinds = list(dict.fromkeys(row["task"] for row in rows))
    by_policy: dict[str, dict[tuple[str, str], Row]] = {}
    for row in rows:
        by_policy.setdefault(row["policy"], {})[row["task"], row["sample"]] = row
    lines = []
    for policy, of_policy in by_policy.items():
        mine = list(of_policy.values())
        held = float(np.mean([row["bytes_held"] / row["bytes_full"] for row in mine]))
        slots = float(np.mean([row["slots"] / row["slots_full"] for row in mine]))
        of_kinds = [[row["exact"] for row in mine if row["task"] == asked] for asked in kinds]
        lines.append(
            [
                _name(policy),
                str(len(mine)),
                estimate(_mean_of([row["exact"] for row in mine], mine)),
                "-" if policy == "full" else estimate(_above(of_policy, by_policy["full"]), sign=True),
                *(number(float(np.mean(right)) if right else None) for right in of_kinds),
                share(round(held, 3)),
                share(round(slots, 3)),
            ]
        )
    learned = [policy for policy in by_policy if policy not in _NAMES and kind(policy) == "learned"]
    equal = [
        p for p, r in by_policy.items() if p not in learned and isinstance(next(iter(r.values()))["budget"], float)
    ]
    above = [[_name(o), *(estimate(_above(by_policy[p], by_policy[o]), sign=True) for p in learned)] for o in equal]
    return Table(
        title,
        ["policy", "questions", "accuracy", "to full", *kinds, "bytes", "slots"],
        lines,
        above if learned else [],
        [_name(p) for p in learned],
    )


def _above(policy: dict[tuple[str, str], Row], other: dict[tuple[str, str], Row]) -> Estimate:
    """How much more often the first is right, on the questions that both were asked."""
    both = [key for key in policy if key in other]
    return _mean_of([policy[key]["exact"] - other[key]["exact"] for key in both], [policy[key] for key in both])


def _name(policy: str) -> str:
    return _NAMES.get(policy, label(policy))
