"""What the shipped memories were aimed at, against what they reach, from the rows of the embedded suite.

    python benchmarks/targets.py

Differences are paired: the same samples under both memories, at the same bytes, means over tasks of the task means, with
95 % bootstrap intervals. Normalised: 1 is the full cache, 0 its first four tokens. "Once" are the heuristics that read a
text once; kvzip reads it twice, as a memory that rehearses does.
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np
from rows import read, write

from namm.policies import BASELINES, builtin_memories
from namm.report.bootstrap import resample
from namm.report.statistics import LEAST_SPAN

SAME = ("full",)
FEWEST = 8  # samples that make a line
ONCE = [name for name, policy in BASELINES.items() if name not in SAME and policy.rehearsal is None]
TWICE = [name for name, policy in BASELINES.items() if policy.rehearsal is not None]
Samples = dict[str, dict[str, float]]
"""NLL by task and sample."""


class Table:
    """Likelihoods of one length and budget."""

    def __init__(self, rows: Iterable[dict[str, Any]], tokens: int, budget: float) -> None:
        self.nll: dict[str, Samples] = defaultdict(lambda: defaultdict(dict))
        for row in rows:
            if row["tokens"] == tokens and row["budget"] in (budget, None):
                self.nll[row["policy"]][row["task"]][row["sample"]] = row["nll"]

    def normalised(self, policy: str, task: str, sample: str) -> float:
        full, floor = (self.nll[name][task][sample] for name in ("full", "floor"))
        return (floor - self.nll[policy][task][sample]) / (floor - full) if floor - full >= LEAST_SPAN else np.nan

    def shared(self, *policies: str) -> dict[str, list[str]]:
        """Samples by task that all of them were measured on."""
        tasks = (
            set.intersection(*(set(self.nll[p]) for p in policies)) if all(p in self.nll for p in policies) else set()
        )
        found = {t: sorted(set.intersection(*(set(self.nll[p][t]) for p in policies))) for t in sorted(tasks)}
        return {task: samples for task, samples in found.items() if samples}

    def estimate(self, first: str, second: str | None, normalised: bool) -> dict[str, Any] | None:
        """Mean of `first`, or of `first - second` on the samples of both, over tasks, with its interval."""
        shared = self.shared(*filter(None, (first, second)), "full", "floor")
        if not shared:
            return None

        def value(policy: str, task: str, sample: str) -> float:
            return self.normalised(policy, task, sample) if normalised else self.nll[policy][task][sample]

        means, draws, by_task = [], [], {}
        for task, samples in shared.items():
            column = np.array([value(first, task, s) - (value(second, task, s) if second else 0.0) for s in samples])
            there = np.isfinite(column)  # samples on which forgetting costs nothing have no normalised score
            if there.any():
                names = [sample for sample, is_there in zip(samples, there, strict=True) if is_there]
                drawn = resample(column[there][:, None], names, seed=zlib.crc32(task.encode()))
                means.append(drawn.mean[0])
                draws.append(drawn.draws[:, 0])
                by_task[task] = round(float(drawn.mean[0]), 3)
        low, high = np.percentile(np.mean(draws, axis=0), (2.5, 97.5))
        return {
            "mean": round(float(np.mean(means)), 3), "low": round(float(low), 3), "high": round(float(high), 3),
            "samples": sum(map(len, shared.values())), "tasks": by_task,
        }  # fmt: skip


def measure() -> list[dict[str, Any]]:
    rows = read("embedded")
    tables = sorted({(row["tokens"], row["budget"]) for row in rows if isinstance(row["budget"], float)})
    found = []
    for memory in builtin_memories():
        for tokens, budget in tables:
            whole = {
                (r["task"], r["sample"])
                for r in rows
                if (r["policy"], r["tokens"], r["budget"]) == (memory, tokens, budget)
            }
            if len(whole) < FEWEST:
                continue
            table = Table((r for r in rows if (r["task"], r["sample"]) in whole), tokens, budget)
            against = {name: table.estimate(memory, name, True) for name in (*ONCE, *TWICE, "truncated")}
            scores = {name: table.estimate(name, None, True) for name in (memory, *ONCE, *TWICE, "oracle")}
            once = max((score["mean"], name) for name, score in scores.items() if score and name in ONCE)
            closed = {}
            for unit, normalised in (("normalised", True), ("nll", False)):
                to_oracle, part = (table.estimate(name, once[1], normalised) for name in ("oracle", memory))
                closed[unit] = round(part["mean"] / to_oracle["mean"], 3) if to_oracle and part else None
            found.append(
                {
                    "memory": memory, "tokens": tokens, "budget": budget, "normalised": scores, "against": against,
                    "best_once": once[1], "gap_closed": closed,
                    "nll_against_h2o": table.estimate(memory, "h2o", False),
                }
            )  # fmt: skip
    return found


if __name__ == "__main__":
    print(write("targets", measure()))
