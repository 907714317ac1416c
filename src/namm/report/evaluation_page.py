"""The evaluation as one HTML page: opens offline, needs no script, light and dark, laptop and phone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from html import escape
from itertools import groupby
from typing import Any

from namm.report.page_charts import charts
from namm.report.page_style import STYLE
from namm.report.page_tables import COLUMNS, differences, minus, results, side_by_side
from namm.report.summary import Group, Summary, estimate, label, number

HOW_TO_READ = """
<p>A language model read texts and answered questions about them while its cache was held to a share of its bytes.
Each policy is another way to choose what stays. The <b>full cache</b> forgets nothing, the <b>oracle</b> is the best
that attention allows, the <b>floor</b> keeps four tokens. A good memory comes near the oracle, beats every heuristic,
and by far beats <b>random</b>, <b>streaming</b> (the most recent tokens) and the <b>truncated prompt</b> (its middle
removed before reading).</p>
<p>The small figures below a number are its 95 % interval: samples are drawn again {draws:,} times, those of one text
together, with all policies on the same draw. Where the interval of a difference leaves out zero, blue is better and
orange worse. With few texts the intervals are too narrow, and among many comparisons some leave out zero by chance.
Overall figures are means over tasks, each task counting the same.</p>
<p>Two policies are compared only where both hold the <b>same physical bytes</b> on every sample, to within one slot in
every head; elsewhere the table says <i>bytes differ</i>, and a note gives both shares. A truncated prompt may hold
less, which a note says as well. A dash means not measured or not defined.</p>
"""


def to_html(summary: Summary, title: str) -> str:
    """The whole page.

    Args:
        title: of the page, such as the model and what was compared.
    """
    sections = [(setting, list(groups)) for setting, groups in groupby(summary.groups, key=lambda g: g.setting)]
    links = "".join(f'<li><a href="#s{i}">{escape(setting)}</a></li>' for i, (setting, _) in enumerate(sections))
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="sub">{escape(_subtitle(summary))}</p>',
        f'<nav aria-label="Contents"><ul>{links}<li><a href="#columns">What each column is</a></li>'
        '<li><a href="#run">Configuration and versions</a></li></ul></nav>',
        _in_short(summary),
        f'<h2 id="read">How to read this</h2>{HOW_TO_READ.format(draws=summary.draws)}',
        *(_section(i, setting, groups) for i, (setting, groups) in enumerate(sections)),
        f'<h2 id="columns">What each column is</h2><dl class="columns">{_glossary()}</dl>',
        _run(summary),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body><main>\n" + "\n".join(body)
    ) + "\n</main></body></html>\n"


def _subtitle(summary: Summary) -> str:
    tasks = {task for group in summary.groups for task in group.tasks}
    policies = {line.policy for group in summary.groups for line in group.lines}
    model = "".join(f"{name}: " for name in summary.provenance["model"][:1])
    return f"{model}{len(policies)} policies, {len(tasks)} task{'s' * (len(tasks) > 1)}, {summary.rows:,} rows"


def _in_short(summary: Summary) -> str:
    parts = []
    for setting, groups in groupby(summary.groups, key=lambda g: g.setting):
        items = "".join(f"<li>{text}</li>" for group in groups for text in _findings(group))
        if items:
            parts.append(f"<h3>{escape(setting[:1].upper() + setting[1:])}</h3><ul>{items}</ul>")
    return f'<section class="brief" aria-label="In short">{"".join(parts)}</section>' if parts else ""


def _findings(group: Group) -> Iterator[str]:
    """A sentence for each learned memory at a budget, made of figures of the overall table."""
    best = group.best_heuristic
    for line in group.lines:
        scores = line.overall
        if line.kind != "learned" or best is None or scores.normalised is None:
            continue
        found = scores.against.get(best)
        text = f"<strong>{escape(group.allowance)}</strong>: {escape(label(line.policy))} has a normalised score of "
        text += minus(estimate(scores.normalised))
        if found and found.estimate:
            e = found.estimate
            verdict = ("better than" if e.mean < 0 else "worse than") if e.sure else "not clearly different from"
            text += f" and is <strong>{verdict}</strong> {escape(best)}, the best heuristic: "
            text += f"{minus(estimate(e, sign=True))} nats"
        elif found:
            text += f"; not compared with {escape(best)}, the best heuristic: {escape(found.refused)}"
        gap = scores.gap_closed
        yield text + (f". It closes {minus(number(gap.mean))} of the gap to the oracle." if gap else ".")


def _section(i: int, setting: str, groups: Sequence[Group]) -> str:
    return (
        f'<section><h2 id="s{i}">{escape(setting[:1].upper() + setting[1:])}</h2>'
        + charts(groups)
        + "".join(_group(group) for group in groups)
        + "</section>"
    )


def _group(group: Group) -> str:
    notes = "".join(f"<li>{escape(note)}</li>" for note in group.notes)
    each = "".join(
        f"<details><summary>{escape(task)}{'' if metric == 'exact' else f' ({escape(metric)})'}</summary>"
        f"{results(group, task)}</details>"
        for task, metric in group.tasks.items()
    )
    pairs = any(line.overall.against for line in group.lines)
    return (
        f"<h3>{escape(group.allowance[:1].upper() + group.allowance[1:])}: {len(group.tasks)} "
        f"task{'s' * (len(group.tasks) > 1)}, {group.samples} samples</h3>"
        + results(group, None)
        + f'<ul class="notes">{notes}</ul>'
        + f"<details><summary>Every policy against every baseline</summary>{differences(group)}</details>" * pairs
        + f"<details><summary>All tasks side by side</summary>{side_by_side(group)}</details>"
        + f"<details><summary>One table for each task</summary>{each}</details>"
    )


def _glossary() -> str:
    return "".join(f'<dt id="c-{key}">{name}</dt><dd>{about}</dd>' for key, (name, about) in COLUMNS.items())


def _run(summary: Summary) -> str:
    facts = {name: ", ".join(values) for name, values in summary.provenance.items() if values}
    config = {name: v if isinstance(v, str) else json.dumps(v, default=str) for name, v in _flat(summary.config)}
    parts = ['<h2 id="run">Configuration and versions</h2>']
    for caption, pairs in (("Configuration of the run", config), ("Found in the rows", facts)):
        rows = [f'<tr><th scope="row">{escape(k)}</th><td>{escape(v)}</td></tr>' for k, v in pairs.items()]
        if rows:
            parts.append(
                f'<h3>{caption}</h3><div class="box" role="region" tabindex="0" aria-label="{caption}">'
                f'<table class="facts"><tbody>{"".join(rows)}</tbody></table></div>'
            )
    return "".join(parts)


def _flat(config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The entries of a configuration, those of a dictionary in it one by one."""
    for name, value in config.items():
        if isinstance(value, dict):
            yield from ((f"{name}: {inner}", found) for inner, found in value.items())
        else:
            yield name, value
