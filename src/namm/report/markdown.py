"""Markdown: the one table there is, an evaluation's summary, and what was forgotten."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from namm.report.summary import NONE, Comparison, Group, Line, Scores, Summary, estimate, label, number, share

if TYPE_CHECKING:
    from namm.report.forgetting import Forgetting


def table(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table: first column to the left, numbers to the right."""
    rows = [headings, ["---", *["---:"] * (len(headings) - 1)], *lines]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |\n" for row in rows)


def of_forgetting(runs: Mapping[str, Forgetting], setting: str, layer: int | None = None) -> str:
    """What was kept of each class of tokens, a table for each text.

    Args:
        setting: how the texts were read, as a sentence.
        layer: the one that the tables are of; all together if left out.
    """
    from namm.report.forgetting import COLUMNS, class_table

    place = "All layers together" if layer is None else f"Layer {layer}"
    parts = [
        f"# What is forgotten\n\n{setting} {place}.\n",
        "Shares are of heads that hold a token after the last update; `ratio` is against all judged tokens of the "
        "text, `neighbours` against those read between the same two updates.",
    ]
    for title, run in runs.items():
        judged = f"{int(run.judged.sum()):,} judged, updates every {run.update_interval}"
        parts += [f"\n## {title}\n", f"{len(run.spans):,} tokens, {judged}.\n", table(COLUMNS, class_table(run, layer))]
    return "\n".join(parts)


# -- an evaluation -----------------------------------------------------------------------------------------------------


def to_markdown(summary: Summary) -> str:
    """For each protocol, template, length and budget: a table over all tasks, one for each task, and notes."""
    return "\n".join([*(_group(group) for group in summary.groups), _legend(summary)])


def _comparison(found: Comparison | None) -> str:
    return NONE if found is None else found.refused or estimate(found.estimate, sign=True)


def _gap(scores: Scores) -> str:
    return "bytes differ" if scores.gap_refused == "bytes differ" else estimate(scores.gap_closed)


def _group(group: Group) -> str:
    parts = [f"### {group.setting}, {group.allowance}\n", _overall(group)]
    if any(line.kind == "learned" and line.overall.against for line in group.lines):
        parts += ["NLL above each baseline's at equal bytes (negative: the memory is better):\n", _differences(group)]
    parts += ["Each task, NLL (exact):\n", _tasks(group)]
    return "\n".join([*parts, *(f"* {note}" for note in group.notes), ""])


def _overall(group: Group) -> str:
    best = group.best_heuristic
    columns = ["policy", "n", "NLL", "to full", "normalised", "exact"]
    columns += [group.metric] * (group.metric != "exact") + [f"against {best}"] * (best is not None)
    return table([*columns, "gap closed", "bytes", "slots"], [list(_cells(group, line)) for line in group.lines])


def _cells(group: Group, line: Line) -> Iterator[str]:
    scores, best = line.overall, group.best_heuristic
    yield label(line.policy)
    yield f"{scores.n}" if not scores.missing else f"{scores.n} of {scores.n + scores.missing}"
    yield number(scores.nll)
    yield estimate(scores.to_full, sign=True) if line.kind != "full" else NONE
    fixed = line.kind in ("full", "floor")  # 1 and 0 by definition
    yield number(scores.normalised.mean) if fixed and scores.normalised else estimate(scores.normalised)
    yield number(scores.exact)
    if group.metric != "exact":
        yield number(scores.score)
    if best is not None:
        yield "best heuristic" if line.policy == best else _comparison(scores.against.get(best))
    yield _gap(scores)
    yield share(scores.bytes_share)
    yield share(scores.slots_share)


def _differences(group: Group) -> str:
    learned = [line for line in group.lines if line.kind == "learned"]
    baselines = dict.fromkeys(name for line in learned for name in line.overall.against)
    lines = [[label(b), *(_comparison(line.overall.against.get(b)) for line in learned)] for b in baselines]
    return table(["against", *(label(line.policy) for line in learned)], lines)


def _tasks(group: Group) -> str:
    headings = [task if metric == "exact" else f"{task} (exact, {metric})" for task, metric in group.tasks.items()]
    lines = [
        [label(line.policy), *(_task(line.tasks[task], m) for task, m in group.tasks.items())] for line in group.lines
    ]
    return table(["policy", *headings], lines)


def _task(scores: Scores, metric: str) -> str:
    if not scores.n:
        return NONE
    inner = number(scores.exact) + ("" if metric == "exact" else f", {number(scores.score)}")
    return f"{number(scores.nll)} ({inner})"


def _legend(summary: Summary) -> str:
    made = "; ".join(f"{name} {', '.join(values)}" for name, values in summary.provenance.items() if values)
    return (
        "NLL: nats per token of the gold reply, lower is better; overall figures are means over tasks. to full: NLL "
        "above the full cache's. normalised: 1 as good as the full cache, 0 as good as its first four tokens alone. "
        "against: NLL above that policy's; it stands only where both hold the same bytes. gap closed: share of the way "
        "from the best heuristic to the oracle, which knows the attention that each token will receive. In brackets "
        f"95 % intervals of a paired bootstrap over contexts, {summary.draws:,} draws. bytes, slots: shares of a full "
        f"cache. {summary.rows:,} rows" + (f"; {made}.\n" if made else ".\n")
    )
