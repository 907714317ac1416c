"""Score over bytes: every policy's points over all budgets, overall and for each task."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from namm.report.figures import COLOURS, drawing, svg
from namm.report.summary import Group, Scores, label, number, share

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MARKS = ("o", "s", "^", "v", "P")
_DASHES = {"oracle": (0, (4, 2.5)), "random": (0, (1, 1.8)), "truncated": (0, (5, 2, 1, 2))}
_GAP = 15  # points between two labels
_CHARACTER = 7.1  # points, about, of a letter of a label


@dataclass(frozen=True)
class Point:
    """`share` of the full cache's bytes, and the value with its interval."""

    share: float
    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Look:
    """How a policy is drawn, the same in every figure of a section."""

    colour: str
    marker: str
    width: float = 1.7
    dash: Any = "-"


@dataclass(frozen=True)
class Curve:
    """One policy; `own` if its points are at its own threshold, on no line. `whiskers` draws the intervals."""

    name: str
    look: Look
    points: tuple[Point, ...]
    own: bool = False
    whiskers: bool = False


@dataclass(frozen=True)
class Chart:
    """Curves over bytes, with levels (a name, a look, a value) drawn across, and the shares to mark below."""

    title: str
    curves: tuple[Curve, ...]
    levels: tuple[tuple[str, Look, float], ...]
    ticks: tuple[float, ...]
    least: float
    most: float


@dataclass(frozen=True)
class _Figures:
    """The figures of a setting as SVG: `overall` of one chart in two widths, of each task, and the legend."""

    overall: tuple[tuple[str, str, str], ...]
    tasks: tuple[tuple[str, str], ...]
    legend: tuple[tuple[str, str], ...]
    normalised: bool


def figures(groups: Sequence[Group], name: str) -> _Figures | None:
    """Of `groups`, which are the budgets of one setting; None if there is nothing to draw.

    Args:
        name: one that no other figures of the page have.
    """
    looks = _looks(groups)
    normalised = chart("Normalised score over bytes, overall", groups, None, looks, exact=False)
    exact = chart("Exact replies over bytes, overall", groups, None, looks, exact=True)
    large = [one for one in (normalised, exact) if one.curves]
    if not large:
        return None
    each = [_of_task(groups, task, looks) for task in dict.fromkeys(task for group in groups for task in group.tasks)]
    return _Figures(
        tuple(
            (one.title, drawn(one, 900, 400, True, f"{name}w{i}"), drawn(one, 360, 320, False, f"{name}n{i}"))
            for i, one in enumerate(large)
        ),
        tuple((one.title, drawn(one, 360, 250, False, f"{name}t{i}")) for i, one in enumerate(each) if one.curves),
        tuple(_legend(large[0].curves, looks, groups, name)),
        bool(normalised.curves),
    )


def _looks(groups: Sequence[Group]) -> dict[str, Look]:
    kinds = {line.policy: line.kind for group in groups for line in group.lines}
    looks, learned, heuristics = {}, 0, 0
    for policy, kind in kinds.items():
        if kind == "learned":
            looks[policy] = Look(COLOURS[f"learned-{learned % 3}"], "D", 3)
            learned += 1
        elif kind == "heuristic":
            marker = _MARKS[(heuristics + heuristics // 6) % len(_MARKS)]
            looks[policy] = Look(COLOURS[f"line-{heuristics % 6}"], marker)
            heuristics += 1
        else:
            colour = COLOURS["ink" if kind in ("full", "oracle") else "plain"]
            looks[policy] = Look(colour, "o", 1 if kind == "floor" else 1.7, _DASHES.get(kind, "-"))
    return looks


def _of_task(groups: Sequence[Group], task: str, looks: dict[str, Look]) -> Chart:
    found = chart(task, groups, task, looks, exact=False)
    return found if found.curves else chart(task, groups, task, looks, exact=True)


def chart(title: str, groups: Sequence[Group], task: str | None, looks: dict[str, Look], exact: bool) -> Chart:
    """Every policy's points over all budgets; `task` None is overall."""
    points: dict[tuple[str, bool], list[Point]] = {}
    levels: dict[str, float] = {}
    learned = {line.policy for group in groups for line in group.lines if line.kind == "learned"}
    for group in groups:
        for line in group.lines:
            point = _point(line.overall if task is None else line.tasks.get(task), exact)
            if point is None:
                continue
            if line.kind in ("full", "floor"):
                levels[line.policy] = point.value
            else:
                points.setdefault((line.policy, group.budget == "own"), []).append(point)
    curves = [
        Curve(
            label(policy) + (", own threshold" if own else ""),
            looks[policy],
            tuple(sorted(found, key=lambda p: p.share)),
            own,
            whiskers=policy in learned and not exact,
        )
        for (policy, own), found in sorted(points.items(), key=lambda item: item[0][0] in learned)  # drawn last
    ]
    shown = tuple((label(policy).split(" (")[0], looks[policy], value) for policy, value in levels.items())
    ticks = tuple(sorted({group.budget for group in groups if isinstance(group.budget, float)}))
    return Chart(title, tuple(curves), shown, ticks, least=0.0 if exact else -0.5, most=1.0 if exact else 1.5)


def _point(scores: Scores | None, exact: bool) -> Point | None:
    if scores is None or not scores.bytes_share:
        return None
    if exact:
        return None if scores.exact is None else Point(scores.bytes_share, scores.exact)
    e = scores.normalised
    return None if e is None else Point(scores.bytes_share, e.mean, e.low, e.high)


# -- drawing -----------------------------------------------------------------------------------------------------------


def drawn(chart: Chart, width: int, height: int, labels: bool, name: str) -> str:
    """The chart as SVG; with `labels`, lines are named at their right end."""
    with drawing():
        names = [c.name for c in chart.curves if not c.own] + [name for name, _, _ in chart.levels]
        margin = 22 + _CHARACTER * max(map(len, names), default=0) if labels else 12
        figure, axes = _plane(chart, width, height, margin)
        titles = dict(_levels(chart, axes))
        for i, curve in enumerate(chart.curves):
            titles |= _curve(curve, axes, f"c{i}", labels)
        if labels:
            _label(chart, axes, width, height)
    return svg(figure, name, f"{chart.title}: {', '.join(names)}", titles)


def _plane(chart: Chart, width: int, height: int, margin: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / 72, height / 72))  # a point is a pixel of the page
    axes = figure.add_axes((44 / width, 40 / height, 1 - (44 + margin) / width, 1 - 54 / height))
    shares = [share for share in (*(p.share for c in chart.curves for p in c.points), *chart.ticks) if share > 0]
    values = [p.value for c in chart.curves for p in c.points] + [value for _, _, value in chart.levels]
    low, high = max(chart.least, min([*values, 0.0])), min(chart.most, max([*values, 1.0]))
    room = 0.04 * (high - low)
    axes.set(xscale="log", xlim=(min(shares) / 1.12, max(shares) * 1.12), ylim=(low - room, high + room))
    step = 0.2 if high - low < 1.3 else 0.5
    steps = range(math.ceil((low - room) / step), math.floor((high + room) / step) + 1)
    axes.set_yticks([step * i for i in steps], [number(step * i, 1).replace("-", "\u2212") for i in steps])
    axes.set_xticks(*_thinned(chart.ticks, axes, width), minor=False)
    axes.set_xticks([], minor=True)
    axes.tick_params(length=0, labelsize=12, labelcolor=COLOURS["soft"], pad=7)
    axes.grid(axis="y", color=COLOURS["grid"], linewidth=1)
    axes.set_axisbelow(True)
    axes.set_xlabel("share of the bytes", fontsize=12, color=COLOURS["soft"])
    for spine in axes.spines.values():
        spine.set_visible(False)
    return figure, axes


def _thinned(ticks: Sequence[float], axes: Axes, width: int) -> tuple[list[float], list[str]]:
    """The ticks, without the words of those that stand too close to the one before."""
    first, last = (math.log(end) for end in axes.get_xlim())
    words, before = [], -math.inf
    for tick in ticks:
        x = (math.log(tick) - first) / (last - first) * axes.get_position().width * width
        words.append(share(tick) if x - before > 42 else "")
        before = x if x - before > 42 else before
    return list(ticks), words


def _levels(chart: Chart, axes: Axes) -> Iterator[tuple[str, str]]:
    for i, (name, look, value) in enumerate(chart.levels):
        axes.axhline(value, color=look.colour, linewidth=look.width, clip_on=False, gid=f"l{i}")
        yield f"l{i}", f"{name}: {number(value)}"


def _curve(curve: Curve, axes: Axes, gid: str, labels: bool) -> dict[str, str]:
    """Draw a curve; returns what is told where the pointer is. Values beyond the edge are arrows at it."""
    low, high = axes.get_ylim()

    def inside(value: float) -> float:
        return min(max(value, low), high)

    look, titles = curve.look, {}
    style: dict[str, Any] = {"color": look.colour, "clip_on": False}
    if not curve.own and len(curve.points) > 1:
        axes.plot(
            [p.share for p in curve.points],
            [inside(p.value) for p in curve.points],
            linewidth=look.width,
            linestyle=look.dash,
            gid=gid,
            **style,
        )
        titles[gid] = curve.name
    for i, point in enumerate(curve.points):
        y, arrow = inside(point.value), "up" if point.value > high else "down" if point.value < low else ""
        between = ""
        if point.low is not None and point.high is not None:
            between = f" [{number(point.low)}, {number(point.high)}]"
            if curve.whiskers:
                ends = [inside(point.low), inside(point.high)]
                axes.plot([point.share] * 2, ends, linewidth=1.5, alpha=0.6, **style)
        axes.plot([point.share], [y], gid=f"{gid}p{i}", **_mark(arrow or look.marker, curve.own), **style)
        titles[f"{gid}p{i}"] = f"{curve.name}, {share(point.share)} of the bytes: {number(point.value)}{between}"
        if curve.own and labels:
            axes.annotate(
                "own",
                (point.share, y),
                (0, -17 if i % 2 else 9),
                textcoords="offset points",
                ha="center",
                fontsize=12,
                color=look.colour,
            )
    return titles


def _mark(marker: str, own: bool) -> dict[str, Any]:
    """Keywords for a marker, of Matplotlib's or an arrow: filled, or hollow for a memory at its own threshold."""
    from matplotlib.path import Path

    down = [(0, -1.2), (1, 0), (0.3, 0), (0.3, 1), (-0.3, 1), (-0.3, 0), (-1, 0), (0, -1.2)]
    arrows = {"down": Path(down), "up": Path([(x, -y) for x, y in down])}
    size = 10 if marker in arrows else 6.6 if marker in "Ds" else 7.6
    paper = {"markerfacecolor" if own else "markeredgecolor": COLOURS["paper"], "markeredgewidth": 2 if own else 1}
    return {"marker": arrows.get(marker, marker), "markersize": size, "linestyle": "none", **paper}


def _label(chart: Chart, axes: Axes, width: int, height: int) -> None:
    """Names to the right of the lines' ends, pushed apart, each tied to its end."""
    low, high = axes.get_ylim()
    ends = [(value, axes.get_xlim()[1], name, look) for name, look, value in chart.levels]
    ends += [(c.points[-1].value, c.points[-1].share, c.name, c.look) for c in chart.curves if not c.own]
    ends = [(min(max(value, low), high), at, name, look) for value, at, name, look in ends]
    ends.sort(key=itemgetter(0, 2))
    box = axes.get_position()
    wide, tall = box.width * width, box.height * height
    heights = _apart([(value - low) / (high - low) * tall for value, *_ in ends], _GAP, 0, tall)
    for (value, at, name, look), y in zip(ends, heights, strict=True):
        tie = {"arrowstyle": "-", "color": look.colour, "linewidth": 0.8, "alpha": 0.5, "shrinkA": 2, "shrinkB": 0}
        axes.annotate(
            name,
            (at, value),
            (1 + 14 / wide, y / tall),
            textcoords="axes fraction",
            va="center_baseline",
            fontsize=12,
            color=look.colour,
            weight="bold" if look.width > 2 else "normal",
            annotation_clip=False,
            arrowprops={**tie, "relpos": (0, 0.5)},
        )


def _apart(wanted: list[float], gap: float, bottom: float, top: float) -> list[float]:
    """Places near the wanted ones, which ascend, in the same order and `gap` apart; closer if there is no room."""
    gap = min(gap, (top - bottom) / max(1, len(wanted) - 1))
    places: list[float] = []
    for place in wanted:
        places.append(max(place, places[-1] + gap if places else bottom))
    limit = top
    for i in reversed(range(len(places))):
        places[i] = min(places[i], limit)
        limit = places[i] - gap
    return places


# -- the legend --------------------------------------------------------------------------------------------------------


def _legend(
    curves: Sequence[Curve], looks: dict[str, Look], groups: Sequence[Group], name: str
) -> Iterator[tuple[str, str]]:
    """A short piece of each line, and its name."""
    present = {line.policy for group in groups for line in group.lines}
    for policy in ("full", "floor"):
        if policy in present:
            yield _piece(looks[policy], True, None, f"{name}{policy}"), label(policy)
    for i, curve in enumerate(curves):
        yield _piece(curve.look, not curve.own, _mark(curve.look.marker, curve.own), f"{name}k{i}"), curve.name


def _piece(look: Look, joined: bool, mark: dict[str, Any] | None, name: str) -> str:
    from matplotlib.figure import Figure

    with drawing():
        figure = Figure(figsize=(26 / 72, 14 / 72))
        axes = figure.add_axes((0, 0, 1, 1), xlim=(0, 26), ylim=(0, 14))
        axes.set_axis_off()
        if joined:
            axes.plot([1, 25], [7, 7], color=look.colour, linewidth=look.width, linestyle=look.dash)
        if mark:
            axes.plot([13], [7], color=look.colour, **mark)
    return svg(figure, name, "")
