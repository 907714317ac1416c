"""Charts of the evaluation page: score over bytes, overall and for each task."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from html import escape

from namm.report.curves import Chart, Curve, Point, draw, swatch
from namm.report.summary import Group, Scores, label

MARKS = ("circle", "square", "triangle", "down", "bar", "diamond")


def _styles(groups: Sequence[Group]) -> dict[str, tuple[str, str]]:
    """Style and marker of each policy, the same in every chart of a section."""
    kinds = {line.policy: line.kind for group in groups for line in group.lines}
    styles, learned, heuristics = {}, 0, 0
    for policy, kind in kinds.items():
        if kind == "learned":
            styles[policy] = (f"learned learned-{learned % 3}", "diamond")
            learned += 1
        elif kind == "heuristic":
            styles[policy] = (f"line-{heuristics % 6}", MARKS[(heuristics + heuristics // 6) % 5])
            heuristics += 1
        else:
            styles[policy] = (kind, "circle")
    return styles


def charts(groups: Sequence[Group]) -> str:
    """Two overall charts, the legend, and a small chart for each task; `groups` are the budgets of one setting."""
    styles = _styles(groups)
    tasks = dict.fromkeys(task for group in groups for task in group.tasks)
    normalised = _chart("Normalised score over bytes, overall", groups, None, styles, False)
    exact = _chart("Exact replies over bytes, overall", groups, None, styles, True)
    if not normalised.curves and not exact.curves:
        return ""
    legend = f'<ul class="legend">{"".join(_legend(normalised.curves or exact.curves, styles, groups))}</ul>'
    each = [_chart(task, groups, task, styles, False) for task in tasks]
    each = [chart if chart.curves else _chart(chart.title, groups, chart.title, styles, True) for chart in each]
    small = "".join(
        f"<figure><figcaption><b>{escape(chart.title)}</b></figcaption>"
        f"{draw(chart, 360, 250, False, f'Score over bytes, {chart.title}')}</figure>"
        for chart in each
        if chart.curves
    )
    return (
        _large(normalised, "1: full cache, 0: floor. Whiskers of a NAMM: 95 % interval. Arrows: beyond the edge.")
        + _large(exact, "Share of replies that are right.")
        + legend
        + f"<h3>Each task: {'normalised score' if normalised.curves else 'exact replies'} over bytes</h3>"
        + f'<div class="small">{small}</div>{legend}'
    )


def _large(chart: Chart, about: str) -> str:
    """A chart in two sizes, of which the style sheet shows the one that fits the screen."""
    if not chart.curves:
        return ""
    return (
        f"<figure><figcaption><b>{chart.title}</b><br>{about} Bytes on a logarithmic scale.</figcaption>"
        f'<div class="wide">{draw(chart, 900, 400, True)}</div>'
        f'<div class="narrow">{draw(chart, 360, 320, False)}</div></figure>'
    )


def _legend(curves: Iterable[Curve], styles: dict[str, tuple[str, str]], groups: Sequence[Group]) -> Iterator[str]:
    present = {line.policy for group in groups for line in group.lines}
    for policy in ("full", "floor"):
        if policy in present:
            yield f"<li>{swatch(styles[policy][0], '')}{escape(label(policy))}</li>"
    for curve in curves:
        yield f"<li>{swatch(curve.style, curve.marker, curve.joined)}{escape(curve.name)}</li>"


def _chart(
    title: str, groups: Sequence[Group], task: str | None, styles: dict[str, tuple[str, str]], exact: bool
) -> Chart:
    """Every policy's points over all budgets; `task` None is overall."""
    points: dict[tuple[str, bool], list[Point]] = {}
    levels: dict[str, float] = {}
    for group in groups:
        for line in group.lines:
            point = _point(line.overall if task is None else line.tasks.get(task), exact)
            if point is None:
                continue
            if line.kind in ("full", "floor"):
                levels[line.policy] = point.value
            else:
                points.setdefault((line.policy, group.budget == "own"), []).append(point)
    curves = tuple(
        Curve(
            label(policy) + (", own threshold" if own else ""), styles[policy][0] + (" own" if own else ""),
            styles[policy][1], tuple(found), joined=not own, whiskers="learned" in styles[policy][0] and not exact,
        )
        for (policy, own), found in points.items()
    )  # fmt: skip
    drawn_last = sorted(curves, key=lambda curve: "learned" in curve.style)
    shown = tuple((label(policy).split(" (")[0], policy, value) for policy, value in levels.items())
    ticks = tuple(sorted({group.budget for group in groups if isinstance(group.budget, float)}))
    return Chart(title, tuple(drawn_last), shown, ticks, least=0.0 if exact else -0.5, most=1.0 if exact else 1.5)


def _point(scores: Scores | None, exact: bool) -> Point | None:
    if scores is None or not scores.bytes_share:
        return None
    if exact:
        return None if scores.exact is None else Point(scores.bytes_share, scores.exact)
    e = scores.normalised
    return None if e is None else Point(scores.bytes_share, e.mean, e.low, e.high)
