"""How every memory did in the evaluations of `evidence.sh`, on the samples that all of them have.

    python benchmarks/evidence.py

Writes `results/evidence.jsonl`, a row for each model, length and budget, and the picture of docs/results.md. Normalised: 1
is the full cache, 0 its first four tokens. Means over tasks of the task means; differences are paired; intervals are 95 %
bootstrap intervals over samples.
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from rows import read, write

from namm.policies import DEFAULT_MEMORY
from namm.report import LEAST_SPAN, resample

PICTURE = Path(__file__).parents[1] / "docs" / "results.png"
MODELS = {
    "smollm2": "SmolLM2-135M",
    "gemma": "Gemma-3-270M",
    "qwen": "Qwen2.5-Coder-0.5B (unseen)",
}
RULE, PLAIN = "requery-calibrated", "requery"
"""The best rule by hand that reads once, and the same without a calibration."""
TARGETS = {
    ("smollm2", 1024, 0.25): 0.98, ("smollm2", 1024, 0.125): 0.93, ("smollm2", 1024, 0.0625): 0.80,
    ("smollm2", 2048, 0.25): 0.96, ("smollm2", 2048, 0.125): 0.90, ("smollm2", 4096, 0.25): 0.96,
    ("smollm2", 4096, 0.125): 0.90, ("qwen", 1024, 0.25): 0.95, ("qwen", 1024, 0.125): 0.75,
}  # fmt: skip
"""Scores that were aimed at, by model, length and budget."""
TWICE = ("kvzip", "kvzip@model", "kvzip-whole")
APART = ("full", "floor", "oracle", "truncated", "random")


@cache
def complete(suite: str) -> list[dict[str, Any]]:
    """The rows of the samples that were read under every memory at every budget of their length."""
    rows, wanted, found = read(suite), defaultdict(set), defaultdict(set)
    for row in rows:
        key = row["policy"], row["budget"]
        wanted[row["tokens"]].add(key)
        found[_sample(row)].add(key)
    return [row for row in rows if found[_sample(row)] == wanted[row["tokens"]]]


def _sample(row: dict[str, Any]) -> tuple[int, str, str]:
    return row["tokens"], row["task"], row["sample"]


def tables(suite: str) -> Iterator[tuple[int, float, list[dict[str, Any]]]]:
    """Length, budget and rows, the full cache's and the floor's among them."""
    rows = complete(suite)
    for tokens, budget in sorted(
        {(r["tokens"], r["budget"]) for r in rows if r["budget"]}, key=lambda x: (x[0], -x[1])
    ):
        yield tokens, budget, [r for r in rows if r["tokens"] == tokens and r["budget"] in (budget, None)]


def estimate(rows: Iterable[dict[str, Any]], first: str, second: str | None = None) -> dict[str, Any]:
    """Mean of the normalised score of `first`, or of its difference to that of `second`."""
    nll: dict[str, dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        nll[row["task"]][row["sample"]][row["policy"]] = row["nll"]
    means, draws = [], []
    for task, samples in sorted(nll.items()):
        spans = {name: of["floor"] - of["full"] for name, of in samples.items()}
        there = [name for name, span in spans.items() if span >= LEAST_SPAN]  # forgetting costs nothing on the others
        column = [
            ((samples[n][second] if second else samples[n]["floor"]) - samples[n][first]) / spans[n] for n in there
        ]
        if there:
            drawn = resample(np.array(column)[:, None], there, seed=zlib.crc32(task.encode()))
            means.append(drawn.mean[0])
            draws.append(drawn.draws[:, 0])
    low, high = np.percentile(np.mean(draws, axis=0), (2.5, 97.5))
    return {"mean": round(float(np.mean(means)), 3), "low": round(float(low), 3), "high": round(float(high), 3)}


def measure() -> list[dict[str, Any]]:
    found = []
    for suite in MODELS:
        for tokens, budget, rows in tables(suite):
            policies = sorted({row["policy"] for row in rows} - {"full", "floor"})
            scores = {name: estimate(rows, name) for name in policies}
            once = [name for name in policies if name not in (*TWICE, *APART, DEFAULT_MEMORY)]
            found.append(
                {
                    "model": suite, "tokens": tokens, "budget": budget,
                    "n": len({_sample(row) for row in rows}), "tasks": len({row["task"] for row in rows}),
                    "commits": sorted({row["commit"] for row in rows}), "normalised": scores,
                    "above": {n: estimate(rows, DEFAULT_MEMORY, n) for n in policies if n != DEFAULT_MEMORY},
                    "best_heuristic": max((n for n in once if "@" not in n and n not in (RULE, PLAIN)), key=lambda n: scores[n]["mean"]),
                }
            )  # fmt: skip
    return found


SHOWN = {
    DEFAULT_MEMORY: ("namm", "tab:orange"),
    RULE: ("requery, calibrated", "tab:olive"),
    PLAIN: ("requery", "tab:brown"),
    "kvzip-whole": ("KVzip, reads twice", "tab:blue"),
    "observed-max": ("observed maximum", "tab:green"),
    "snapkv": ("SnapKV", "tab:purple"),
    "h2o": ("H2O", "tab:red"),
    "streaming": ("StreamingLLM", "tab:grey"),
}


def draw(rows: list[dict[str, Any]]) -> None:
    """Score over bytes at the shortest length, a panel for each model; bands are 95 % intervals."""
    import matplotlib.pyplot as plt

    shown = [suite for suite in MODELS if any(row["model"] == suite for row in rows)]
    figure, panels = plt.subplots(
        1, len(shown), figsize=(4 * len(shown), 3.9), sharey=True, layout="constrained", squeeze=False
    )
    for panel, suite in zip(panels[0], shown, strict=True):
        mine = [row for row in rows if row["model"] == suite]
        mine = [row for row in mine if row["tokens"] == min(row["tokens"] for row in mine)]
        bytes_held = [100 * row["budget"] for row in mine]
        for name, (text, color) in SHOWN.items():
            scores = [row["normalised"][name] for row in mine]
            width = 2.2 if name == DEFAULT_MEMORY else 1.2
            panel.plot(
                bytes_held, [s["mean"] for s in scores], "o-", color=color, markersize=3, linewidth=width, label=text
            )
            panel.fill_between(
                bytes_held,
                [s["low"] for s in scores],
                [s["high"] for s in scores],
                color=color,
                alpha=0.13,
                linewidth=0,
            )
        panel.axhline(1, color="black", linewidth=0.6, linestyle=":")
        panel.set_xscale("log")
        panel.set_xticks(bytes_held, [f"{held:g}" for held in bytes_held])
        panel.minorticks_off()
        panel.set(xlabel="bytes of the cache, per cent", ylim=(-0.35, 1.08))
        panel.set_title(f"{MODELS[suite]}, {mine[0]['tokens']:,} tokens, n = {mine[0]['n']}", fontsize=10)
    panels[0][0].set_ylabel("score: 1 is the full cache")
    panels[0][0].legend(frameon=False, fontsize=8, loc="lower right")
    figure.savefig(PICTURE, dpi=130)


if __name__ == "__main__":
    print(write("evidence", measure()))
    draw(read("evidence"))
    print(PICTURE)
