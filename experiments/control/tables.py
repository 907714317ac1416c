"""Write the tables and the picture of docs/control.md from the row files.

python experiments/control/tables.py
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from namm.report import interval, label, resample, table

sys.path.insert(0, str(Path(__file__).parents[2]))  # the root of the repository: all of these are found there

from benchmarks.rows import made_by, read
from experiments.control.evaluate import FULL, OWN, WINDOW, Line, summarise, to_markdown
from experiments.control.simulators import scale_of

DOCS = Path(__file__).parents[2] / "docs"
WINDOW_STEPS = 20  # of training, in the paper and in all models but one


def measured() -> list[dict[str, Any]]:
    return read("control")


def data(rows: list[dict[str, Any]]) -> str:
    """What the models learned from, and what they were asked for."""
    lines = {}
    for r in rows:
        lines[r["task"], r["context"]] = [
            r["task"], r["env"], f"{r['data_episodes']:,}", f"{r['data_steps']:,}", f"{r['data_return']:,.0f}",
            f"{_normalised(r):.1f}", str(r["context"]), f"{r['loss']:.3f}", f"{r['target']:,.0f}",
        ]  # fmt: skip
    headings = [
        "data set",
        "environment",
        "episodes",
        "steps",
        "mean return",
        "normalised",
        "window",
        "loss",
        "return asked for",
    ]
    return table(headings, list(lines.values()))


def _normalised(row: dict[str, Any]) -> float:
    """The mean return of the data on D4RL's scale."""
    scale = scale_of(row["env"])
    return float("nan") if scale is None else scale.normalised(row["data_return"])


def returns(rows: list[dict[str, Any]]) -> str:
    """All contexts of all models, and by what they were measured."""
    r = rows[0]
    seeds = sorted({row["seed"] for row in rows})
    commits = ", ".join(sorted({row["commit"] for row in rows}))
    return to_markdown(rows) + (
        f"\nSeeds {seeds[0]} to {seeds[-1]}, {len(rows):,} episodes; `experiments/control/run.sh` at commit {commits}; "
        f"{r['hardware']}; torch {r['torch']}, transformers {r['transformers']}, gymnasium {r['gymnasium']}, "
        f"MuJoCo {r['mujoco']}, {r['dtype']}.\n"
    )


def overall(rows: list[dict[str, Any]]) -> str:
    """Each method against the window of training, over all models of one window; models are drawn, not episodes."""
    windows = {
        (r["task"], r["seed"]): r["normalised"] for r in rows if r["policy"] == WINDOW and r["budget"] == WINDOW_STEPS
    }
    gains: dict[tuple[str, Any], list[tuple[str, float]]] = {}
    for r in rows:
        if r["context"] == WINDOW_STEPS and r["policy"] != WINDOW and r["budget"] in (WINDOW_STEPS, OWN, None):
            gain = r["normalised"] - windows[r["task"], r["seed"]]
            gains.setdefault((r["policy"], r["budget"]), []).append((r["task"], gain))
    lines = []
    for (policy, budget), found in gains.items():
        by_model = {task: [gain for of, gain in found if of == task] for task, _ in found}
        drawn = resample(np.asarray([[np.mean(mine)] for mine in by_model.values()]), list(by_model))
        low, high = interval(drawn)[:, 0]
        sure = [_ends(mine) for mine in by_model.values()]
        lines.append(
            (
                -drawn.mean[0],
                [
                    label(policy), "-" if budget is None else str(budget), str(len(by_model)), str(len(found)),
                    f"{drawn.mean[0]:+.1f} [{low:+.1f}, {high:+.1f}]", f"{sum(a > 0 for a, _ in sure)}",
                    f"{sum(b < 0 for _, b in sure)}",
                ],
            )
        )  # fmt: skip
    headings = ["context", "budget, steps", "models", "episodes", "above the window", "models above", "below"]
    return table(headings, [line for _, line in sorted(lines, key=lambda pair: pair[0])])


def _ends(values: list[float]) -> tuple[float, float]:
    low, high = interval(resample(np.asarray(values)[:, None], [str(i) for i in range(len(values))]))[:, 0]
    return float(low), float(high)


def speed() -> str:
    """Steps a second, and bytes."""
    rows = read("control_speed")
    lines = [
        [
            label(r["context"]), str(r["width"]), str(r["beside"]), f"{r['steps_per_second']:,.0f}",
            f"{r['ratio']:.2f}", " ".join(f"{x:.2f}" for x in r["ratio_of_each_half"]),
            "-" if r["context"] == WINDOW else f"{r['bytes_held'] / r['bytes_full']:.1%}",
        ]
        for r in rows
    ]  # fmt: skip
    headings = [
        "context",
        "width",
        "side by side",
        "steps/s",
        "ratio to the window",
        "first and second half",
        "bytes of a full cache",
    ]
    return table(headings, lines) + "\n" + made_by(rows)


def plain() -> str:
    """Agreement with the plain rollout."""
    lines = []
    rows = read("control_plain")
    for dtype in ("float64", "float32"):
        mine = [r for r in rows if r["dtype"] == dtype]
        lines.append(
            [
                dtype, str(len({r["model"] for r in mine})), str(len(mine)),
                f"{max(r['largest_difference_first_20'] for r in mine):.0e}",
                f"{max(r['largest_difference'] for r in mine):.0e}",
                f"{max(abs(r['return'] - r['plain_return']) for r in mine):.2g}",
            ]
        )  # fmt: skip
    headings = [
        "dtype",
        "models",
        "episodes",
        "actions apart, first 20 steps",
        "whole episode",
        "returns apart, at most",
    ]
    return table(headings, lines) + "\n" + made_by(rows)


def picture(rows: list[dict[str, Any]]) -> None:
    """Normalised returns with their intervals: a panel for each model, the window's interval shaded."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    panels: dict[tuple[str, int], list[Line]] = {}
    for line in summarise(rows):
        if line.budget in (line.context, OWN, None):
            panels.setdefault((line.task, line.context), []).append(line)
    columns = min(3, len(panels))
    height = -(-len(panels) // columns)
    figure, axes = plt.subplots(height, columns, figsize=(4.2 * columns, 3.6 * height), squeeze=False, sharey=False)
    for axis, ((task, context), lines) in zip(axes.flat, panels.items(), strict=False):
        lines.sort(key=lambda line: line.normalised[0])
        (window,) = (line for line in lines if line.policy == WINDOW)
        axis.axvspan(*window.normalised[1:], color="0.85")
        for place, line in enumerate(lines):
            mean, low, high = line.normalised
            ours = line.policy.startswith("builtin:")
            color = "black" if line.policy in (WINDOW, FULL) else "tab:red" if ours else "tab:blue"
            axis.errorbar(mean, place, xerr=[[mean - low], [high - mean]], fmt="o", color=color, markersize=4)
        axis.set_yticks(range(len(lines)), [_name(line) for line in lines], fontsize=7)
        axis.set_title(f"{task.replace('-v0', '')}, window {context}", fontsize=9)
        axis.set_xlabel("normalised return", fontsize=8)
        axis.tick_params(axis="x", labelsize=7)
    for axis in list(axes.flat)[len(panels) :]:
        axis.set_axis_off()
    figure.tight_layout()
    figure.savefig(DOCS / "control.png", dpi=110)


def _name(line: Line) -> str:
    name = label(line.policy).replace(" smollm2-135m-instruct", "")
    return name if line.budget is None else f"{name}, {line.budget}"


def main() -> None:
    rows = measured()
    text = (DOCS / "control.md").read_text()
    for name, part in (
        ("data", data(rows)), ("overall", overall(rows)), ("returns", returns(rows)), ("speed", speed()),
        ("plain", plain()),
    ):  # fmt: skip
        before, _, after = text.split(f"<!-- {name} -->\n")
        text = f"<!-- {name} -->\n".join([before, part, after])
    (DOCS / "control.md").write_text(text)
    picture(rows)


if __name__ == "__main__":
    main()
