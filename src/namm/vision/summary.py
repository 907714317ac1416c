"""The table of a video evaluation: accuracy over bytes, with intervals over clips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from namm.report.bootstrap import interval, resample
from namm.report.summary import Estimate, estimate, label, number, share, table
from namm.vision.clips import KINDS

Row = dict[str, Any]
_NAMES = {"fewer-frames": "fewer frames, evenly chosen", "floor": "first 4 tokens and the last"}


@dataclass(frozen=True)
class Table:
    """One length at one budget: a line for each policy, as text."""

    title: str
    headings: list[str]
    lines: list[list[str]]


def tables(rows: Sequence[Row]) -> list[Table]:
    """For each length and budget a table: accuracy, paired difference to the full cache, accuracy of each kind.

    Intervals are 95 %, from a bootstrap over clips; the questions about one clip are drawn together.
    """
    found = []
    for length in sorted({row["tokens"] for row in rows}):
        here = [row for row in rows if row["tokens"] == length]
        budgets = dict.fromkeys(row["budget"] for row in here if row["budget"] is not None)
        for budget in sorted(budgets, key=lambda b: (isinstance(b, str), -b if isinstance(b, float) else 0)):
            mine = [row for row in here if row["budget"] in (None, budget)]
            found.append(_table(_title(here, length, budget), mine))
    return found


def to_markdown(rows: Sequence[Row]) -> str:
    """All `tables`, one below the other."""
    return "\n".join(f"### {t.title}\n\n{table(t.headings, t.lines)}" for t in tables(rows))


def mean_of(values: Sequence[float], rows: Sequence[Row]) -> Estimate:
    """Mean of a value of each row, with its interval; no interval where there is one clip only."""
    drawn = resample(np.array(values, dtype=float)[:, None], [row["clip"] for row in rows])
    low, high = interval(drawn)[:, 0]
    return Estimate(float(drawn.mean[0]), *(None if np.isnan(end) else float(end) for end in (low, high)))


def _title(rows: Sequence[Row], length: int, budget: float | str) -> str:
    clips = len({row["clip"] for row in rows})
    tokens = round(float(np.mean([row["clip_tokens"] for row in rows])))
    allowed = "own thresholds" if isinstance(budget, str) else f"{share(budget)} of the bytes"
    unit = "seconds" if all(row["task"] in KINDS for row in rows) else "frames"
    return f"{clips} clips of {length} {unit} ({tokens} tokens), {allowed}"


def _table(title: str, rows: Sequence[Row]) -> Table:
    kinds = list(dict.fromkeys(row["task"] for row in rows))
    full = {(row["task"], row["sample"]): row for row in rows if row["policy"] == "full"}
    lines = []
    for policy in dict.fromkeys(row["policy"] for row in rows):
        mine = [row for row in rows if row["policy"] == policy]
        apart = [row["exact"] - full[row["task"], row["sample"]]["exact"] for row in mine]
        held = float(np.mean([row["bytes_held"] / row["bytes_full"] for row in mine]))
        slots = float(np.mean([row["slots"] / row["slots_full"] for row in mine]))
        of_kinds = [[row["exact"] for row in mine if row["task"] == kind] for kind in kinds]
        lines.append([
            _NAMES.get(policy, label(policy)), str(len(mine)), estimate(mean_of([row["exact"] for row in mine], mine)),
            "-" if policy == "full" else estimate(mean_of(apart, mine), sign=True),
            *(number(float(np.mean(right)) if right else None) for right in of_kinds),
            share(round(held, 3)), share(round(slots, 3)),
        ])  # fmt: skip
    return Table(title, ["policy", "questions", "accuracy", "to full", *kinds, "bytes", "slots"], lines)
