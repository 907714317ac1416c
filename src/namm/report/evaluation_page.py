"""The evaluation as one HTML page: opens offline, needs no script, light and dark, laptop and phone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

from namm.report.page import fill
from namm.report.score_figures import figures
from namm.report.summary import NONE, Estimate, Group, Line, Scores, Summary, estimate, label, number, share

COLUMNS = {
    "policy": ("Policy", "What decided which tokens stay in the cache. A NAMM is a learned memory."),
    "n": ("n", "Samples measured; every policy reads the same ones."),
    "nll": ("NLL", "Nats per token of the right reply: how surprised the model is by it. Lower is better."),
    "to-full": ("NLL to full", "NLL above that of the full cache on the same samples: what forgetting costs."),
    "normalised": (
        "Normalised",
        "The same on a scale that tasks share: 1 is as good as the full cache, 0 as good as its first four tokens "
        "alone. It can be below 0 or above 1.",
    ),
    "exact": ("Exact", "Share of samples whose reply, decoded greedily, is the right one."),
    "score": ("Score", "Mean of each task's own metric, from 0 to 1; the column bears the metric's name if all agree."),
    "score-to-full": ("Score to full", "Score above that of the full cache on the same samples. Higher is better."),
    "best": (
        "Against best",
        "NLL above that of the best heuristic at the same bytes; below zero the policy is better.",
    ),
    "gap": (
        "Gap closed",
        "Share of the way from the best heuristic (0) to the oracle (1), in NLL. The oracle knows the largest "
        "attention that each token will receive: a ceiling for anything that reads attention. Gap uncertain: the "
        "oracle is not clearly better than the best heuristic, so there is nothing to divide by.",
    ),
    "bytes": ("Bytes", "Bytes held once the context was read, over those of a full cache; below, least and most."),
    "slots": ("Slots", "Tokens held in all layers and heads, over those of a full cache."),
    "peak": ("Peak", "Most bytes held at any time, over those of a full cache."),
    "seconds": ("Seconds", "Wall time for a sample, reading and replying, on the hardware named at the end."),
}


def to_html(summary: Summary, title: str) -> str:
    """The whole page.

    Args:
        title: of the page, such as the model and what was compared.
    """
    settings = [(setting, list(groups)) for setting, groups in groupby(summary.groups, key=lambda g: g.setting)]
    findings = [(setting, list(_findings(groups))) for setting, groups in settings]
    values = {
        "title": title,
        "subtitle": _subtitle(summary),
        "summary": summary,
        "columns": COLUMNS,
        "settings": [(setting, groups, figures(groups, f"s{i}")) for i, (setting, groups) in enumerate(settings)],
        "findings": [(setting, found) for setting, found in findings if found],
        "configuration": dict(_flat(summary.config)),
        "found": {name: ", ".join(values) for name, values in summary.provenance.items() if values},
        "heads_of": _heads_of,
        "plain_heads": _plain_heads,
        "baselines_of": _baselines_of,
        "normalised_of": _normalised_of,
        "gap_of": _gap_of,
    }
    return fill(
        "evaluation.html",
        values,
        {
            "number": lambda *said, **more: _minus(number(*said, **more)),
            "estimate": lambda *said, **more: _minus(estimate(*said, **more)),
            "share": share,
            "label": label,
            "upper_first": lambda text: text[:1].upper() + text[1:],
        },
    )


def _minus(text: str) -> str:
    """With minus signs for hyphens, and a dash for what was not measured: for numbers only."""
    return "\u2013" if text == NONE else text.replace("-", "\u2212")


def _subtitle(summary: Summary) -> str:
    tasks = {task for group in summary.groups for task in group.tasks}
    policies = {line.policy for group in summary.groups for line in group.lines}
    model = "".join(f"{name}: " for name in summary.provenance["model"][:1])
    return f"{model}{len(policies)} policies, {len(tasks)} task{'s' * (len(tasks) > 1)}, {summary.rows:,} rows"


def _findings(groups: Iterable[Group]) -> Iterator[tuple[Group, Line]]:
    """Learned memories at the budgets that a sentence can be said about."""
    for group in groups:
        for line in group.lines:
            if line.kind == "learned" and group.best_heuristic and line.overall.normalised:
                yield group, line


def _heads_of(group: Group, task: str | None) -> list[tuple[str, str]]:
    """Keys and headings of a table of results.

    The score is left out where it is exactness, and the comparison where there is nothing to compare with.
    """
    metric = group.metric if task is None else group.tasks[task]
    own = "Score" if metric == "score" else metric
    said = {"score": own, "score-to-full": f"{own} to full", "best": f"Against {group.best_heuristic}"}
    absent = {"score", "score-to-full"} if metric == "exact" else set()
    absent |= set() if group.best_heuristic else {"best", "gap"}
    return [(key, said.get(key, name)) for key, (name, _) in COLUMNS.items() if key not in absent]


def _plain_heads(first: str, others: Iterable[str]) -> list[tuple[None, str]]:
    return [(None, head) for head in (first, *others)]


def _baselines_of(group: Group) -> list[str]:
    """What any policy of the table is compared with."""
    return list(dict.fromkeys(name for line in group.lines for name in line.overall.against))


def _normalised_of(line: Line, scores: Scores) -> Estimate | None:
    """Full and floor are 1 and 0 by definition, without an interval."""
    found = scores.normalised
    return Estimate(found.mean, None, None) if found and line.kind in ("full", "floor") else found


def _gap_of(group: Group, line: Line, scores: Scores) -> Estimate | None:
    """The best heuristic and the oracle are 0 and 1 by definition, without an interval."""
    found, fixed = scores.gap_closed, line.kind == "oracle" or line.policy == group.best_heuristic
    return Estimate(found.mean, None, None) if found and fixed else found


def _flat(config: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The entries of a configuration as text, those of a dictionary in it one by one."""
    for name, value in config.items():
        inner = {f"{name}: {key}": found for key, found in value.items()} if isinstance(value, dict) else {name: value}
        for key, found in inner.items():
            yield key, found if isinstance(found, str) else json.dumps(found, default=str)
