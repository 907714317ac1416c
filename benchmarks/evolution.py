"""Curves of evolution runs: into a row file, and a picture for the docs.

python benchmarks/evolution.py FOLDER_OF_RUNS
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from rows import read, write

from namm.evolution.checkpoint import read_log
from namm.evolution.config import EvolutionConfig
from namm.evolution.draw import validation_items
from namm.evolution.fitness import ModelProblem
from namm.json_files import read_json
from namm.policies import resolve

PICTURE = Path(__file__).parents[1] / "docs" / "evolution.png"


def of(run: Path) -> list[dict[str, Any]]:
    config = read_json(run / "run.json", "Give a folder of runs.")
    kept = ("generation", "mean", "best", "sigma", "evaluations", "seconds", "share")
    found = []
    for row in read_log(run):
        found.append(
            {
                "run": run.name, "start": config["start"]["from"], "scoring": config["start"]["scoring"],
                "space": config["search"]["space"], "features": config["memory"]["features"], "seed": config["seed"],
                "n": len(next(iter(row["validated"].values()))["scores"]) if row["validated"] else None,
                "validated": row["validated"], **{name: row[name] for name in kept},
            }
        )  # fmt: skip
    return found


def references(
    config: EvolutionConfig, policies: tuple[str, ...] = ("kvzip", "observed-max", "h2o")
) -> list[dict[str, Any]]:
    """What baselines reach on the validation samples of the first stage."""
    problem = ModelProblem(config)
    items = validation_items(config, 0)
    return [
        {"run": name, "reference": [problem.compare(item, resolve(name)).score for item in items], "n": len(items)}
        for name in policies
    ]


def draw(rows: list[dict[str, Any]]) -> None:
    """Fitness of the mean on the validation samples over evaluations; a band of the standard error over samples."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    rows = [row for row in rows if row["run"] != "once"]  # other budgets
    for row in rows:
        if "reference" in row:
            mean = float(np.mean(row["reference"]))
            axes.axhline(mean, color="grey", linewidth=0.8, linestyle=":")
            axes.annotate(
                row["run"], (1, mean), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8
            )
    searches = [row for row in rows if "reference" not in row]
    for name in dict.fromkeys(row["run"] for row in searches):
        points = []
        for row in (row for row in searches if row["run"] == name and row["validated"]):
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
    if "--without-references" not in sys.argv:
        gathered += references(EvolutionConfig.load(runs[0] / "run.json"))
    print(write("evolution", gathered))
    draw(read("evolution"))
    print(PICTURE)
