"""Curves of evolution runs: into a row file, and a picture for the docs.

python benchmarks/evolution.py FOLDER_OF_RUNS
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from rows import read, write

from namm.evolution import read_log
from namm.json_files import read_json

PICTURE = Path(__file__).parents[1] / "docs" / "evolution.png"


def of(run: Path) -> list[dict[str, Any]]:
    config = read_json(run / "run.json", "Give a folder of runs.")
    kept = ("generation", "mean", "best", "sigma", "evaluations", "seconds", "share")
    return [
        {
            "run": run.name,
            "seed": config["seed"],
            "models": [Path(model["name"]).name for model in config["models"]],
            "stage": row["stage"],
            "n": len(next(iter(row["validated"].values()))["scores"]) if row["validated"] else None,
            "validated": row["validated"],
            **{name: row[name] for name in kept},
        }
        for row in read_log(run)
    ]


def points(rows: list[dict[str, Any]], before: int) -> list[tuple[int, dict[str, Any]]]:
    """Candidate-samples spent until the search's mean was validated, and its fitness, the stage's start first."""
    found = [(row["evaluations"], row["validated"]["mean"]) for row in rows if "mean" in (row["validated"] or {})]
    return [(before, rows[0]["validated"]["start"]), *found]


def draw(rows: list[dict[str, Any]]) -> None:
    """A panel for each stage: fitness of the mean over candidate-samples, and of each model."""
    import matplotlib.pyplot as plt

    stages = list(dict.fromkeys(row["stage"] for row in rows))
    figure, panels = plt.subplots(
        1, len(stages), figsize=(4.5 * len(stages), 4), sharey=True, layout="constrained", squeeze=False
    )
    for panel, stage in zip(panels[0], stages, strict=True):
        for color, run in enumerate(dict.fromkeys(row["run"] for row in rows)):
            mine = [row for row in rows if row["run"] == run]
            before = max((r["evaluations"] for r in mine if stages.index(r["stage"]) < stages.index(stage)), default=0)
            found = points([row for row in mine if row["stage"] == stage], before)
            x = [spent for spent, _ in found]
            means = np.array([one["fitness"] for _, one in found])
            error = np.array([np.std(one["scores"], ddof=1) / len(one["scores"]) ** 0.5 for _, one in found])
            panel.plot(x, means, marker="o", markersize=3, color=f"C{color}", label=run)
            panel.fill_between(x, means - error, means + error, color=f"C{color}", alpha=0.12)
            for name, style, scores in zip(
                rows[0]["models"],
                ("--", ":", "-."),
                zip(*(one["models"] for _, one in found), strict=True),
                strict=False,
            ):
                panel.plot(x, scores, style, color=f"C{color}", linewidth=0.9, label=f"{run}, {name}")
        panel.axhline(1.0, color="grey", linewidth=0.8, linestyle="--")
        panel.set(xlabel="candidate-samples", ylim=(0, 1.05), title=stage)
    panels[0][0].set_ylabel("validation fitness of the mean")
    panels[0][0].legend(frameon=False, fontsize=8)
    figure.savefig(PICTURE, dpi=150)


if __name__ == "__main__":
    runs = [run for run in sorted(Path(sys.argv[1]).iterdir()) if (run / "log.jsonl").exists()]
    print(write("evolution", [row for run in runs for row in of(run)]))
    draw(read("evolution"))
    print(PICTURE)
