"""Rows of an evaluation, checked and laid out as one table of samples by policies for each task."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np
from jaxtyping import Float

from namm.configuration import OWN
from namm.errors import ConfigurationError

_MEASURES = (
    "nll",
    "exact",
    "score",
    "bytes_held",
    "bytes_full",
    "bytes_per_slot",
    "slots",
    "slots_full",
    "peak_bytes",
    "seconds",
    "bytes_elsewhere",
)
_SIGNED = ("nll", "score")
_TEXTS = ("task", "sample", "protocol", "template", "policy", "context_hash", "prompt_sha256")
_MAY_BE_NULL = ("exact", "score", "peak_bytes", "seconds", "bytes_elsewhere")
_NAMES = ("task", "tokens", "sample", "protocol", "template", "policy", "budget", "context_hash", "prompt_sha256")
WITHOUT_BUDGET = ("full", "floor")

Budget = float | str | None
Row = dict[str, Any]


@dataclass(frozen=True, order=True)
class Setting:
    """What must be equal for rows to stand in one table, but for the budget. `tokens` 0: texts as they come."""

    protocol: str
    template: str
    tokens: int


@dataclass(frozen=True)
class TaskTable:
    """One task in one table: a measure is an array over samples and policies, NaN where there is no row."""

    task: str
    metric: str
    policies: tuple[str, ...]
    clusters: tuple[str, ...]
    measures: dict[str, Float[np.ndarray, "sample policy"]]

    def __getitem__(self, measure: str) -> Float[np.ndarray, "sample policy"]:
        return self.measures[measure]

    def of(self, measure: str, policy: str) -> Float[np.ndarray, "sample"]:
        """One policy's column; all NaN for a policy that has no row."""
        if policy not in self.policies:
            return np.full(len(self.clusters), np.nan)
        return self.measures[measure][:, self.policies.index(policy)]


def check(rows: Iterable[Row]) -> list[Row]:
    """The rows as they came, each complete, finite and there once.

    Raises:
        ConfigurationError: a field is missing, a number is not finite, a row is there twice, or one sample has several
            prompts.
    """
    rows = list(rows)
    if not rows:
        raise ConfigurationError("at least one row", "none", "Run the evaluation first, or name its folder.")
    seen: set[tuple[Any, ...]] = set()
    prompts: dict[tuple[Any, ...], str] = {}
    for row in rows:
        _check_fields(row)
        setting, sample = setting_of(row), _sample_of(row)
        key = (setting, sample, row["policy"], budget_of(row))
        if key in seen:
            raise ConfigurationError(
                "one row for each task, length, sample, protocol, policy and budget",
                f"two of {_name(row)}",
                "Rows of two runs do not go into one summary; summarise each folder by itself.",
            )
        seen.add(key)
        if (
            row["policy"] != "truncated"
            and prompts.setdefault((setting, sample), row["prompt_sha256"]) != (row["prompt_sha256"])
        ):
            raise ConfigurationError(
                "the same prompt for all policies on a sample",
                f"another prompt_sha256 in {_name(row)}",
                "The rows come from different versions of the task; evaluate again into a new folder.",
            )
    return rows


def setting_of(row: Row) -> Setting:
    return Setting(str(row["protocol"]), str(row["template"]), int(row["tokens"] or 0))


def _sample_of(row: Row) -> tuple[str, str, str]:
    """Names a sample; another seed makes another text under the same id."""
    return str(row["task"]), str(row["sample"]), str(row.get("seed"))


def budget_of(row: Row) -> Budget:
    """The budget as a number, "own", or None for policies that have none."""
    budget = row["budget"]
    return None if row["policy"] in WITHOUT_BUDGET else budget if isinstance(budget, str) else float(budget)


def blocks(rows: Sequence[Row], policies: Sequence[str], universe: Sequence[Row]) -> list[TaskTable]:
    """One block for each task of `universe`, whose samples are what every policy should have."""
    metrics: dict[str, list[str]] = {}
    clusters: dict[tuple[str, str, str], str] = {}
    for row in sorted(universe, key=lambda r: r["policy"] == "truncated"):  # its context is another one
        metrics.setdefault(row["task"], []).append(str(row.get("metric") or "exact"))
        clusters.setdefault(_sample_of(row), row["context_hash"])
    found = {(_sample_of(row), row["policy"]): row for row in rows}
    return [
        _block(task, metrics[task], policies, clusters, found) for task in dict.fromkeys(r["task"] for r in universe)
    ]


def _block(
    task: str,
    metrics: list[str],
    policies: Sequence[str],
    clusters: dict[tuple[str, str, str], str],
    found: dict[tuple[tuple[str, str, str], str], Row],
) -> TaskTable:
    samples = sorted(sample for sample in clusters if sample[0] == task)
    measures = {
        measure: np.array(
            [[_number(found.get((sample, policy)), measure) for policy in policies] for sample in samples]
        )
        for measure in _MEASURES
    }
    metric = " / ".join(dict.fromkeys(metrics))
    return TaskTable(task, metric, tuple(policies), tuple(clusters[sample] for sample in samples), measures)


def _number(row: Row | None, measure: str) -> float:
    value = None if row is None else row.get(measure)
    return math.nan if value is None else float(value)


def _check_fields(row: Row) -> None:
    missing = [name for name in (*_NAMES, *_MEASURES) if name not in row and name not in _MAY_BE_NULL]
    if missing:
        raise ConfigurationError(
            f"rows with {', '.join(missing)}",
            f"a row with only {', '.join(sorted(row)) or 'nothing'}",
            "Write rows with `namm eval`.",
        )
    for name in _TEXTS:
        if not isinstance(row[name], str):
            raise ConfigurationError(
                f"a text for {name}", f"{row[name]!r} in {_name(row)}", "Evaluate this sample again."
            )
    for measure in _MEASURES:
        value = row.get(measure)
        if value is None and measure in _MAY_BE_NULL:
            continue
        if not _is_number(value) or (value < 0 and measure not in _SIGNED):
            raise ConfigurationError(
                f"a finite number for {measure}",
                f"{value!r} in {_name(row)}",
                "Evaluate this sample again; a mean over such a row would mean nothing.",
            )
    if row["bytes_full"] <= 0 or row["slots_full"] <= 0:
        raise ConfigurationError(
            "a full cache of at least one slot",
            f"bytes_full {row['bytes_full']}, slots_full {row['slots_full']} in {_name(row)}",
            "Evaluate this sample again.",
        )
    if row["policy"] not in WITHOUT_BUDGET and not (row["budget"] == OWN or _is_number(row["budget"])):
        raise ConfigurationError(
            f'a budget that is a share of the full cache\'s bytes or "{OWN}"',
            f"{row['budget']!r} in {_name(row)}",
            "Only full and floor have no budget.",
        )


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and abs(value) <= sys.float_info.max


def _name(row: Row) -> str:
    return f"sample {row['sample']!r} of {row['task']}, policy {row['policy']}, budget {row['budget']}"
