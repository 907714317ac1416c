"""Write the tables and the picture of docs/transfer.md from the row file.

python benchmarks/transfer.py
"""

from __future__ import annotations

from pathlib import Path

from rows import RESULTS, read

from namm.json_files import read_json
from namm.report.statistics import summarise
from namm.report.summary import Summary, label, to_markdown

PAGE = Path(__file__).parents[1] / "docs" / "transfer.md"
MARK = "<!-- tables -->\n"


def draw(summary: Summary, file: Path) -> None:
    """Normalised score of every policy, a panel for each length and budget."""
    import matplotlib.pyplot as plt

    groups = [group for group in summary.groups if isinstance(group.budget, float)]
    figure, panels = plt.subplots(1, len(groups), figsize=(3.1 * len(groups), 3.6), sharey=True, layout="constrained")
    for panel, group in zip([panels] if len(groups) == 1 else panels, groups, strict=True):
        lines = [line for line in group.lines if line.kind not in ("full", "floor") and line.overall.normalised]
        for place, line in enumerate(reversed(lines)):
            found = line.overall.normalised
            ends = None if found.low is None else [[found.mean - found.low], [found.high - found.mean]]
            panel.errorbar(
                found.mean, place, xerr=ends, fmt="o", markersize=5, capsize=2,
                color="tab:orange" if line.kind == "learned" else "tab:grey",
            )  # fmt: skip
        panel.set_yticks(range(len(lines)), [label(line.policy) for line in reversed(lines)], fontsize=8)
        panel.axvline(1, color="black", linewidth=0.6, linestyle=":")
        panel.set(title=f"{group.tokens:,} tokens,\n{group.budget:.0%} of the bytes", xlabel="normalised score")
        panel.title.set_fontsize(9)
    figure.savefig(file, dpi=120)


def main() -> None:
    rows = read("transfer")
    summary = summarise(rows, read_json(RESULTS / "transfer.json", "Check the file out again."))
    draw(summary, PAGE.with_suffix(".png"))
    before, _, after = PAGE.read_text().split(MARK)
    PAGE.write_text(MARK.join([before, to_markdown(summary), after]))


if __name__ == "__main__":
    main()
