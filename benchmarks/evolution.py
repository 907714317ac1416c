"""Curves of evolution runs: into a row file, and a picture for the docs.

python benchmarks/evolution.py FOLDER_OF_RUNS
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from rows import RESULTS, write

PICTURE = Path(__file__).parents[1] / "docs" / "evolution.png"


def of(run: Path) -> list[dict[str, Any]]:
    config = json.loads((run / "run.json").read_text())["config"]
    kept = ("generation", "mean", "best", "sigma", "evaluations", "seconds", "share")
    found = []
    for line in (run / "log.jsonl").read_text().splitlines():
        row = json.loads(line)
        found.append(
            {
                "run": run.name, "start": config["start"]["from"], "scoring": config["start"]["scoring"],
                "space": config["search"]["space"], "features": config["memory"]["features"], "seed": config["seed"],
                "n": len(next(iter(row["validated"].values()))["scores"]) if row["validated"] else None,
                "validated": row["validated"], **{name: row[name] for name in kept},
            }
        )  # fmt: skip
    return found


def draw(rows: list[dict[str, Any]]) -> None:
    """Fitness of the mean on the validation samples over evaluations; a band of the standard error over samples."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for name in dict.fromkeys(row["run"] for row in rows):
        points = []
        for row in (row for row in rows if row["run"] == name and row["validated"]):
            if "start" in row["validated"]:
                points.append((1, row["validated"]["start"]["scores"]))
            if "mean" in row["validated"]:
                points.append((row["evaluations"], row["validated"]["mean"]["scores"]))
        x, means = [p[0] for p in points], np.array([np.mean(p[1]) for p in points])
        error = np.array([np.std(p[1], ddof=1) / len(p[1]) ** 0.5 for p in points])
        (line,) = axes.plot(x, means, marker="o", markersize=3, label=name)
        axes.fill_between(x, means - error, means + error, color=line.get_color(), alpha=0.12)
    axes.set(xlabel="evaluations (candidates x samples)", ylabel="validation fitness of the mean", ylim=(0, 1.05))
    axes.axhline(1.0, color="grey", linewidth=0.8, linestyle="--")
    axes.legend(frameon=False)
    figure.savefig(PICTURE, dpi=150)


if __name__ == "__main__":
    runs = [run for run in sorted(Path(sys.argv[1]).iterdir()) if (run / "log.jsonl").exists()]
    gathered = [row for run in runs for row in of(run)]
    print(write("evolution", gathered))
    draw([json.loads(line) for line in (RESULTS / "evolution.jsonl").read_text().splitlines()])
    print(PICTURE)
