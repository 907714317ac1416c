"""Tables of the evaluation page: results overall or of a task, every pair of policies, all tasks side by side."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from namm.report.summary import NONE, Comparison, Estimate, Group, Line, Scores, label, number, share

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


def results(group: Group, task: str | None) -> str:
    """Policies by columns, overall or for one task."""
    metric = group.metric if task is None else group.tasks[task]
    names = [key for key in COLUMNS if metric != "exact" or key not in ("score", "score-to-full")]
    names = [key for key in names if group.best_heuristic or key not in ("best", "gap")]
    own = "Score" if metric == "score" else metric
    heading = {"score": own, "score-to-full": f"{own} to full", "best": f"Against {group.best_heuristic}"}
    head = "".join(f'<th scope="col"><a href="#c-{k}">{escape(heading.get(k, COLUMNS[k][0]))}</a></th>' for k in names)
    rows = []
    for line in group.lines:
        cells = _cells(group, line, line.overall if task is None else line.tasks[task])
        rows.append(_row(group, line, [cells[key] for key in names if key != "policy"]))
    caption = f"{group.setting}, {group.allowance}, {task or 'overall'}"
    return box(caption, head, rows)


def _cells(group: Group, line: Line, scores: Scores) -> dict[str, str]:
    best = group.best_heuristic
    low_high = scores.bytes_range
    varies = low_high is not None and low_high[1] - low_high[0] > 0.02
    normalised = scores.normalised
    if line.kind in ("full", "floor") and normalised:  # 1 and 0 by definition
        normalised = Estimate(normalised.mean, None, None)
    itself = '<span class="none">itself</span>'
    return {
        "n": str(scores.n) + (f"<small>{scores.missing} missing</small>" if scores.missing else ""),
        "nll": _figure(number(scores.nll)),
        "to-full": _figure(NONE) if line.kind == "full" else _estimate(scores.to_full, sign=True),
        "normalised": _estimate(normalised),
        "exact": _figure(number(scores.exact)),
        "score": _figure(number(scores.score)),
        "score-to-full": _figure(NONE) if line.kind == "full" else _estimate(scores.score_to_full, sign=True),
        "best": itself if line.policy == best else _comparison(scores.against.get(best or "")),
        "gap": _refused(scores.gap_refused) if scores.gap_refused else _gap(line, best, scores),
        "bytes": _figure(share(scores.bytes_share))
        + (f"<small>{share(low_high[0])} to {share(low_high[1])}</small>" if low_high and varies else ""),
        "slots": _figure(share(scores.slots_share)),
        "peak": _figure(share(scores.peak_share)),
        "seconds": _figure(number(scores.seconds, 1)),
    }  # fmt: skip


def _gap(line: Line, best: str | None, scores: Scores) -> str:
    fixed = scores.gap_closed is not None and (line.kind == "oracle" or line.policy == best)
    return _figure(number(scores.gap_closed.mean)) if fixed and scores.gap_closed else _estimate(scores.gap_closed)


def differences(group: Group) -> str:
    """NLL of every policy above that of every baseline, overall."""
    baselines = list(dict.fromkeys(name for line in group.lines for name in line.overall.against))
    names = ["NLL above that of", *map(label, baselines)]
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    rows = [
        _row(group, line, [_comparison(line.overall.against.get(baseline)) for baseline in baselines])
        for line in group.lines
        if line.overall.against
    ]
    about = "Overall, at equal bytes; below zero the policy of the row is better than that of the column."
    return f'<p class="soft">{about}</p>' + box(f"{group.setting}, {group.allowance}, differences", head, rows)


def side_by_side(group: Group) -> str:
    """Policies by tasks."""
    metrics = {task: "" if metric == "exact" else f", {metric}" for task, metric in group.tasks.items()}
    head = '<th scope="col">Policy</th>' + "".join(f'<th scope="col">{escape(task)}</th>' for task in group.tasks)
    rows = []
    for line in group.lines:
        cells = []
        for task, metric in metrics.items():
            s = line.tasks[task]
            more = [minus(number(s.to_full.mean, sign=True))] if s.to_full and line.kind != "full" else []
            more += [minus(number(s.normalised.mean))] if s.normalised else []
            right = f"{number(s.exact)}{f' / {number(s.score)}' if metric else ''}"
            cells.append(
                f"{_figure(number(s.nll))}<small>{' &middot; '.join(more) or NONE}</small><small>{right}</small>"
            )
        rows.append(_row(group, line, cells))
    about = (
        "<p class='soft'>In each cell: NLL; below it NLL to full and the normalised score; below that the share of "
        "exact replies, and after a slash the task's own metric where it is another one.</p>"
    )
    return about + box(f"{group.setting}, {group.allowance}, tasks", head, rows)


def _row(group: Group, line: Line, cells: Iterable[str]) -> str:
    tag = '<span class="tag">best heuristic</span>' if line.policy == group.best_heuristic else ""
    name = f'<th scope="row" title="{escape(line.policy)}">{escape(label(line.policy))}{tag}</th>'
    return f'<tr class="{line.kind}">{name}{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'


def box(caption: str, head: str, rows: Iterable[str]) -> str:
    """A table that scrolls inside its own box, also with the keyboard."""
    return (
        f'<div class="box" role="region" tabindex="0" aria-label="{escape(caption)}"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _figure(text: str) -> str:
    return '<span class="none">&ndash;</span>' if text == NONE else minus(text)


def minus(text: str) -> str:
    """Escaped, with minus signs for hyphens: for numbers only."""
    return escape(text).replace("-", "&minus;")


def _estimate(value: Estimate | None, sign: bool = False) -> str:
    if value is None:
        return _figure(NONE)
    small = "" if value.low is None else f"<small>{_ends(value, sign)}</small>"
    return f"{_figure(number(value.mean, sign=sign))}{small}"


def _ends(value: Estimate, sign: bool) -> str:
    return minus(f"{number(value.low, sign=sign)} to {number(value.high, sign=sign)}")


def _comparison(found: Comparison | None) -> str:
    if found is None:
        return _figure(NONE)
    if found.estimate is None:
        return _refused(found.refused)
    tone = ("better" if found.estimate.mean < 0 else "worse") if found.estimate.sure else ""
    mean = _figure(number(found.estimate.mean, sign=True))
    small = "" if found.estimate.low is None else f"<small>{_ends(found.estimate, True)}</small>"
    return f'<span class="{tone}">{mean}</span>{small}' if tone else f"{mean}{small}"


def _refused(why: str) -> str:
    return f'<span class="refused">{escape(why)}</span>'
