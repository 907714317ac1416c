"""From rows to a summary: means, paired intervals, differences at equal bytes, and the gap to the oracle.

All differences are of NLL, the policy's minus the other's on the same samples, so that a negative one is better.
The overall figure is the mean over tasks of the task means.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from namm.configuration import OWN
from namm.policies import BASELINES
from namm.report.bootstrap import DRAWS, Resampled, interval, pool, resample
from namm.report.rows import WITHOUT_BUDGET, Budget, Row, Setting, TaskTable, blocks, budget_of, check, setting_of
from namm.report.summary import Comparison, Estimate, Group, Line, Scores, Summary, label, share

LEAST_SPAN = 0.1  # nats between floor and full, below which a sample cannot tell policies apart
_FEW_CONTEXTS = 10
_SPECIAL = ("full", "oracle", "random", "truncated", "floor")
_SANITY = ("full", "random", "streaming", "truncated")
_PROVENANCE = (
    "model",
    "dtype",
    "split",
    "seed",
    "update_interval",
    "commit",
    "namm",
    "torch",
    "transformers",
    "python",
    "hardware",
)

_Column = Float[np.ndarray, "sample"]


def summarise(rows: Iterable[Row], config: dict[str, Any] | None = None) -> Summary:
    """Summarise the rows of one evaluation.

    Args:
        rows: one for each task, length, sample, protocol, template, policy and budget.
        config: what the run was asked to do, such as its `run.json`; printed, not read.

    Raises:
        ConfigurationError: there are no rows, or a row is incomplete, not finite, there twice or of another prompt.
    """
    rows = check(rows)
    groups: list[Group] = []
    for setting in sorted({setting_of(row) for row in rows}):
        here = [row for row in rows if setting_of(row) == setting]
        found = {budget_of(row) for row in here if row["policy"] not in WITHOUT_BUDGET} or {None}
        for budget in sorted(found, key=lambda b: (isinstance(b, str), b)):
            mine = [row for row in here if row["policy"] in WITHOUT_BUDGET or budget_of(row) == budget]
            groups.append(_group(setting, budget, mine, here))
    provenance = {
        name: tuple(dict.fromkeys(str(row[name]) for row in rows if row.get(name) is not None)) for name in _PROVENANCE
    }
    return Summary(tuple(groups), dict(config or {}), provenance, len(rows), DRAWS)


def kind(policy: str) -> str:
    """One of `_SPECIAL`, "heuristic" or "learned"; every name that is no baseline's is a learned memory's."""
    if policy in _SPECIAL:
        return policy
    return "heuristic" if policy.partition("@")[0] in BASELINES else "learned"


@dataclass(frozen=True)
class _Table:
    """What the lines of one group are made from. A scope is a task's name, or None for all tasks."""

    blocks: Sequence[TaskTable]
    policies: Sequence[str]
    baselines: Sequence[str]
    best: str | None
    estimates: dict[str | None, dict[tuple[str, ...], Estimate]]

    def within(self, scope: str | None) -> list[TaskTable]:
        return [block for block in self.blocks if scope in (None, block.task)]


def _group(setting: Setting, budget: Budget, rows: Sequence[Row], universe: Sequence[Row]) -> Group:
    ranks = ["full", "oracle", "learned", "heuristic", "random", "truncated", "floor"]
    policies = sorted(dict.fromkeys(row["policy"] for row in rows), key=lambda policy: ranks.index(kind(policy)))
    laid = blocks(rows, policies, universe)
    baselines = [p for p in policies if kind(p) in ("heuristic", "random", "truncated")]
    best, overlooked = _best_heuristic(laid, [p for p in policies if kind(p) == "heuristic"])
    table = _Table(laid, policies, baselines, best, _estimates(laid, policies, baselines, best))
    lines = tuple(_line(table, policy) for policy in policies)
    spans = [_span(block) for block in laid]
    return Group(
        setting.protocol,
        setting.template,
        setting.tokens,
        budget,
        tasks={block.task: block.metric for block in laid},
        lines=lines,
        best_heuristic=best,
        samples=sum(len(block.clusters) for block in laid),
        short_spans=sum(int((span < LEAST_SPAN).sum()) for span in spans),
        spans=sum(int((~np.isnan(span)).sum()) for span in spans),
        notes=tuple(_notes(table, lines, budget, overlooked)),
    )


def _best_heuristic(laid: Sequence[TaskTable], heuristics: Sequence[str]) -> tuple[str | None, list[str]]:
    """The heuristic of the lowest mean NLL among those that have the most samples, and those that have fewer."""
    count = {p: sum(int((~np.isnan(block.of("nll", p))).sum()) for block in laid) for p in heuristics}
    whole = [p for p in heuristics if count[p] == max(count.values())]

    def mean(policy: str) -> float:
        found = _over_tasks(_mean(block.of("nll", policy)) for block in laid)
        return math.inf if found is None else found

    best = min(whole, key=mean, default=None)
    return best, [p for p in heuristics if p not in whole]


def _span(block: TaskTable) -> _Column:
    return block.of("nll", "floor") - block.of("nll", "full")


def _columns(
    block: TaskTable, policies: Sequence[str], baselines: Sequence[str], best: str | None
) -> Iterator[tuple[tuple[str, ...], _Column]]:
    """Every figure that gets an interval, by name, sample by sample."""
    full, floor, span = block.of("nll", "full"), block.of("nll", "floor"), _span(block)
    span = np.where(span < LEAST_SPAN, np.nan, span)
    for policy in policies:
        nll = block.of("nll", policy)
        yield ("normalised", policy), (floor - nll) / span
        yield ("to full", policy), nll - full
        yield ("score to full", policy), block.of("score", policy) - block.of("score", "full")
        for baseline in baselines:
            yield ("against", policy, baseline), nll - block.of("nll", baseline)
    start, oracle = block.of("nll", best or ""), block.of("nll", "oracle")
    for policy in policies:  # above and below the line of the share of the gap, on the samples that all three have
        yield ("closed", policy), start - block.of("nll", policy) + 0 * oracle
    for policy in policies:
        yield ("gap", policy), start - oracle + 0 * block.of("nll", policy)


def _estimates(
    laid: Sequence[TaskTable], policies: Sequence[str], baselines: Sequence[str], best: str | None
) -> dict[str | None, dict[tuple[str, ...], Estimate]]:
    out: dict[str | None, dict[tuple[str, ...], Estimate]] = {}
    names = [name for name, _ in _columns(laid[0], policies, baselines, best)]

    def strata() -> Iterator[Resampled]:
        for block in laid:
            values = np.stack([column for _, column in _columns(block, policies, baselines, best)], axis=1)
            drawn = resample(values, block.clusters, seed=zlib.crc32(block.task.encode()))
            out[block.task] = _named(drawn, names, policies)
            yield drawn

    whole = pool(strata())
    return {None: _named(whole, names, policies), **out}


def _named(
    drawn: Resampled, names: Sequence[tuple[str, ...]], policies: Sequence[str]
) -> dict[tuple[str, ...], Estimate]:
    p = len(policies)
    found = dict(zip(names, _estimate(drawn), strict=True))
    ratio = _estimate(drawn.ratio(slice(-2 * p, -p), slice(-p, None)))
    found |= {("gap closed", policy): e for policy, e in zip(policies, ratio, strict=True)}
    return {name: estimate for name, estimate in found.items() if estimate is not None}


def _estimate(drawn: Resampled) -> list[Estimate | None]:
    return [
        None
        if np.isnan(mean)
        else Estimate(float(mean), *(None if np.isnan(end) else float(end) for end in (low, high)))
        for mean, low, high in zip(drawn.mean, *interval(drawn), strict=True)
    ]


def _line(table: _Table, policy: str) -> Line:
    tasks = {block.task: _scores(table, policy, block.task) for block in table.blocks}
    return Line(policy, kind(policy), _scores(table, policy, None), tasks)


def _scores(table: _Table, policy: str, scope: str | None) -> Scores:
    within, estimates = table.within(scope), table.estimates[scope]
    if partial := any(np.isnan(block.of("nll", policy)).all() for block in within):
        estimates = {}  # figures over some of the tasks stand beside those over all as if they were alike

    def mean(above: str, below: str | None = None) -> float | None:
        if partial:
            return None
        return _over_tasks(_mean(b.of(above, policy) / (b.of(below, policy) if below else 1)) for b in within)

    n = sum(int((~np.isnan(block.of("nll", policy))).sum()) for block in within)
    shares = np.concatenate([block.of("bytes_held", policy) / block.of("bytes_full", policy) for block in within])
    compared = [b for b in table.baselines if b != policy and kind(policy) not in WITHOUT_BUDGET]
    gap_closed, gap_refused = _gap_closed(table, policy, scope)
    return Scores(
        n=n,
        missing=sum(len(block.clusters) for block in within) - n,
        nll=mean("nll"),
        exact=mean("exact"),
        score=mean("score"),
        normalised=estimates.get(("normalised", policy)),
        to_full=estimates.get(("to full", policy)),
        score_to_full=estimates.get(("score to full", policy)),
        against={b: _comparison(estimates.get(("against", policy, b)), within, policy, b) for b in compared},
        gap_closed=gap_closed,
        gap_refused=gap_refused,
        bytes_share=mean("bytes_held", "bytes_full"),
        bytes_range=(float(np.nanmin(shares)), float(np.nanmax(shares))) if n else None,
        slots_share=mean("slots", "slots_full"),
        peak_share=mean("peak_bytes", "bytes_full"),
        seconds=mean("seconds"),
    )


def _comparison(estimate: Estimate | None, within: Sequence[TaskTable], a: str, b: str) -> Comparison:
    if estimate is None:
        return Comparison(None, "no common samples")
    if not _bytes_agree(within, a, b):
        return Comparison(None, "bytes differ")
    return Comparison(estimate)


def _bytes_agree(within: Sequence[TaskTable], a: str, b: str) -> bool:
    """Whether both hold the same bytes on every common sample, to within a slot; a truncated prompt may hold less."""
    return not any((_excess(block, a, b) > 0).any() for block in within)


def _excess(block: TaskTable, a: str, b: str) -> _Column:
    """Bytes by which two policies differ beyond the granularity, sample by sample."""
    apart = block.of("bytes_held", a) - block.of("bytes_held", b)
    room = np.maximum(block.of("bytes_per_slot", a), block.of("bytes_per_slot", b))
    if a == "truncated":
        return apart - room
    if b == "truncated":
        return -apart - room
    return np.abs(apart) - room


def _gap_closed(table: _Table, policy: str, scope: str | None) -> tuple[Estimate | None, str]:
    """(best heuristic - policy) / (best heuristic - oracle), or why there is none."""
    if table.best is None or "oracle" not in table.policies or kind(policy) in WITHOUT_BUDGET:
        return None, ""
    within, found = table.within(scope), table.estimates[scope]
    gap, closed = found.get(("gap", policy)), found.get(("gap closed", policy))
    if gap is None or closed is None:
        return None, "no common samples" if gap is None else "no gap"
    pairs = ((policy, table.best), (policy, "oracle"), (table.best, "oracle"))
    if not all(_bytes_agree(within, a, b) for a, b in pairs):
        return None, "bytes differ"
    if gap.low is None or gap.low <= 0:
        return None, "gap uncertain"
    return closed, ""


def _notes(table: _Table, lines: Sequence[Line], budget: Budget, overlooked: Sequence[str]) -> Iterator[str]:
    """What a reader must know about one table."""
    of = {line.policy: line.overall for line in lines}
    if budget == OWN:
        yield (
            "These memories keep what they score above their own threshold, so their bytes vary from sample to sample; "
            "they are not compared with policies that were given a budget."
        )
    yield from _notes_of_presence(table, of, budget)
    yield from _notes_of_reach(table)
    yield from _notes_of_bytes(table, of)
    if table.best:
        yield (
            f"{label(table.best)} is the best heuristic here, by overall mean NLL on these same rows; choosing it "
            "on the rows it is judged by favours it slightly."
        )
    if overlooked:
        yield f"Not considered as best heuristic, since samples are missing: {', '.join(map(label, overlooked))}."
    uncertain = any(scores.gap_refused == "gap uncertain" for scores in of.values())
    if uncertain:
        yield (
            "The oracle is not clearly better than the best heuristic overall, so a share of the gap between them is "
            "not given."
        )
    few = [
        f"{block.task} ({len(set(block.clusters))})"
        for block in table.blocks
        if len(set(block.clusters)) < _FEW_CONTEXTS
    ]
    if few:
        yield (f"Fewer than {_FEW_CONTEXTS} different contexts, so that intervals are too narrow: {', '.join(few)}.")


def _notes_of_presence(table: _Table, of: dict[str, Scores], budget: Budget) -> Iterator[str]:
    total = sum(len(block.clusters) for block in table.blocks)
    for policy, scores in of.items():
        if scores.missing:
            yield (
                f"{label(policy)}: {scores.missing} of {total} samples are missing; its means are over the samples "
                "it has, its differences over the samples that both have."
            )
    if {"full", "floor"} <= of.keys():
        spans = np.concatenate([_span(block) for block in table.blocks])
        short, measured = int((spans < LEAST_SPAN).sum()), int((~np.isnan(spans)).sum())
        yield (
            f"{short} of {measured} samples are left out of normalised means, because the floor is less than "
            f"{LEAST_SPAN} nats worse than the full cache on them."
        )
    else:
        gone = " and no ".join(p for p in ("full", "floor") if p not in of)
        yield f"There are no {gone} rows, without which nothing can be normalised."
    if budget not in (OWN, None):
        sanity = [policy for policy in _SANITY if policy not in of]
        if sanity:
            yield f"Sanity rows that were not run: {', '.join(sanity)}."
        if "oracle" not in of:
            yield "There are no oracle rows, so the share of the gap to it is unknown."


def _notes_of_reach(table: _Table) -> Iterator[str]:
    """How much of the whole cache a memory can do without, where some layers have a cache of another kind."""
    elsewhere = np.concatenate([block.of("bytes_elsewhere", "full") for block in table.blocks])
    ours = np.concatenate([block.of("bytes_full", "full") for block in table.blocks])
    if (np.nan_to_num(elsewhere) > 0).any():
        whole = float(np.nanmean(elsewhere / (elsewhere + ours)))
        yield (
            f"Some layers of this model keep a cache of their own kind, such as a sliding window: "
            f"{share(round(whole, 3))} of the bytes of the untouched cache. No policy changes those, and through them "
            "the last tokens are seen whatever was forgotten. Bytes, slots and shares are of the other layers."
        )


def _notes_of_bytes(table: _Table, of: dict[str, Scores]) -> Iterator[str]:
    against = {
        (a, b) for a, scores in of.items() for b, found in scores.against.items() if found.refused == "bytes differ"
    }
    gaps = {
        (a, b)
        for a, scores in of.items()
        if scores.gap_refused == "bytes differ"
        for b in (table.best, "oracle")
        if b and b != a and not _bytes_agree(table.blocks, a, b)
    }
    pairs = {frozenset(pair) for pair in against | gaps}
    while pairs:
        worst = max(of, key=lambda policy: sum(policy in pair for pair in pairs))
        others = [policy for policy in of if policy != worst and frozenset((worst, policy)) in pairs]
        yield (
            f"Bytes differ, not compared: {label(worst)} ({share(of[worst].bytes_share)} of the full cache) with "
            + ", ".join(f"{label(other)} ({share(of[other].bytes_share)})" for other in others)
            + "."
        )
        pairs -= {frozenset((worst, other)) for other in others}
    fewer = [p for p in of if "truncated" in of[p].against and not of[p].against["truncated"].refused]
    fewer = [p for p in fewer if any((-_excess_below(block, p) > 0).any() for block in table.blocks)]
    if fewer:
        yield (
            f"The truncated prompt holds fewer bytes ({share(of['truncated'].bytes_share)}) than "
            + ", ".join(f"{label(p)} ({share(of[p].bytes_share)})" for p in fewer)
            + "; compared all the same."
        )


def _excess_below(block: TaskTable, policy: str) -> _Column:
    """Bytes of the truncated prompt above the policy's less one slot: negative where it holds clearly fewer."""
    apart = block.of("bytes_held", "truncated") - block.of("bytes_held", policy)
    return apart + np.maximum(block.of("bytes_per_slot", "truncated"), block.of("bytes_per_slot", policy))


def _mean(values: _Column) -> float | None:
    found = values[~np.isnan(values)]
    return float(found.mean()) if len(found) else None


def _over_tasks(means: Iterable[float | None]) -> float | None:
    found = [mean for mean in means if mean is not None]
    return float(np.mean(found)) if found else None
