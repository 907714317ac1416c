"""Score over bytes as inline SVG: text stays text, and colours come from the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from namm.report.summary import number, share

MARKERS = {
    "circle": "M-3.5 0a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0-7 0Z",
    "square": "M-3.2-3.2H3.2V3.2H-3.2Z",
    "triangle": "M0-4.2L4 3H-4Z",
    "down": "M0 4.2L4-3H-4Z",
    "diamond": "M0-4.6L4.6 0L0 4.6L-4.6 0Z",
    "bar": "M-1.6-4.5H1.6V4.5H-1.6Z",
}
BEYOND = {False: "M0 6L4.5 0H1.4V-5H-1.4V0H-4.5Z", True: "M0-6L4.5 0H1.4V5H-1.4V0H-4.5Z"}  # arrows down and up
LABEL = 15  # pixels between two labels
CHARACTER = 7.1  # pixels, about, of a letter of a label


@dataclass(frozen=True)
class Point:
    """`share` of the full cache's bytes, and the value with its interval."""

    share: float
    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Curve:
    """One policy. `style` is a class of the style sheet; `joined` draws the line; `whiskers` the intervals."""

    name: str
    style: str
    marker: str
    points: tuple[Point, ...]
    joined: bool = True
    whiskers: bool = False


@dataclass(frozen=True)
class Chart:
    """Curves over bytes, with levels (a name, a style, a value) drawn across, and the shares to mark below."""

    title: str
    curves: tuple[Curve, ...]
    levels: tuple[tuple[str, str, float], ...]
    ticks: tuple[float, ...]
    least: float
    most: float


@dataclass(frozen=True)
class _Frame:
    """The plane: pixels of a share (logarithmic) and of a value."""

    left: float
    right: float
    top: float
    bottom: float
    shares: tuple[float, float]
    values: tuple[float, float]

    def x(self, share: float) -> float:
        first, last = (math.log(s) for s in self.shares)
        return self.left + (math.log(max(share, self.shares[0])) - first) / (last - first) * (self.right - self.left)

    def y(self, value: float) -> float:
        low, high = self.values
        return self.bottom - (min(max(value, low), high) - low) / (high - low) * (self.bottom - self.top)

    def outside(self, value: float) -> bool:
        return not self.values[0] <= value <= self.values[1]


def draw(chart: Chart, width: int, height: int, labels: bool, described: str = "") -> str:
    """The chart as an SVG element of that size; with `labels`, lines are named at their right end."""
    names = [c.name for c in chart.curves if c.joined] + [name for name, _, _ in chart.levels]
    margin = 22 + CHARACTER * max(map(len, names), default=0) if labels else 12
    frame = _frame(chart, width - margin, height)
    parts = [
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(described or chart.title)}">',
        *_axes(chart, frame, height),
        *(_level(name, style, value, frame) for name, style, value in chart.levels),
        *(_curve(curve, frame) for curve in chart.curves),
        *(_own(chart, frame) if labels else []),
        *(_labels(chart, frame) if labels else []),
        "</svg>",
    ]
    return "".join(parts)


def swatch(style: str, marker: str, joined: bool = True) -> str:
    """A short piece of a curve, for a legend."""
    line = '<path class="line" d="M1 7H25"/>' if joined else ""
    mark = f'<path class="mark" d="{MARKERS[marker]}" transform="translate(13 7)"/>' if marker else ""
    return f'<svg class="swatch" viewBox="0 0 26 14" aria-hidden="true"><g class="{style}">{line}{mark}</g></svg>'


def _frame(chart: Chart, right: float, height: int) -> _Frame:
    shares = [share for share in (*(p.share for c in chart.curves for p in c.points), *chart.ticks) if share > 0]
    values = [p.value for c in chart.curves for p in c.points] + [value for _, _, value in chart.levels]
    low = max(chart.least, min([*values, 0.0]))
    high = min(chart.most, max([*values, 1.0]))
    room = 0.04 * (high - low)
    edges = (min(shares) / 1.12, max(shares) * 1.12) if shares else (0.1, 1.0)
    return _Frame(44, right, 14, height - 40, edges, (low - room, high + room))


def _axes(chart: Chart, frame: _Frame, height: int) -> list[str]:
    parts = []
    for value in _ticks(*frame.values):
        y, tick = frame.y(value), number(value, 1).replace("-", "&minus;")
        parts.append(f'<path class="grid" d="M{frame.left} {y:.1f}H{frame.right:.1f}"/>')
        parts.append(f'<text class="tick" x="{frame.left - 8}" y="{y + 4:.1f}" text-anchor="end">{tick}</text>')
    last = -math.inf
    for at in sorted(chart.ticks):
        x = frame.x(at)
        parts.append(f'<path class="grid" d="M{x:.1f} {frame.bottom}v5"/>')
        if x - last > 42:
            parts.append(
                f'<text class="tick" x="{x:.1f}" y="{frame.bottom + 18}" text-anchor="middle">{share(at)}</text>'
            )
            last = x
    middle = (frame.left + frame.right) / 2
    parts.append(f'<text class="tick" x="{middle:.0f}" y="{height - 5}" text-anchor="middle">share of the bytes</text>')
    return parts


def _ticks(low: float, high: float) -> list[float]:
    step = 0.2 if high - low < 1.3 else 0.5 if high - low < 3 else 1.0
    return [step * i for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _level(name: str, style: str, value: float, frame: _Frame) -> str:
    y = frame.y(value)
    return (
        f'<g class="{style}"><title>{escape(name)}: {number(value)}</title>'
        f'<path class="line" d="M{frame.left} {y:.1f}H{frame.right:.1f}"/></g>'
    )


def _curve(curve: Curve, frame: _Frame) -> str:
    points = sorted(curve.points, key=lambda p: p.share)
    parts = []
    if curve.joined and len(points) > 1:
        line = "L".join(f"{frame.x(p.share):.1f} {frame.y(p.value):.1f}" for p in points)
        parts.append(f'<path class="line" d="M{line}"/>')
    for point in points:
        x, y = frame.x(point.share), frame.y(point.value)
        if curve.whiskers and point.low is not None and point.high is not None:
            parts.append(f'<path class="whisker" d="M{x:.1f} {frame.y(point.low):.1f}V{frame.y(point.high):.1f}"/>')
        shape = BEYOND[point.value > 0] if frame.outside(point.value) else MARKERS[curve.marker]
        between = f" [{number(point.low)}, {number(point.high)}]" if point.low is not None else ""
        title = f"{curve.name}, {share(point.share)} of the bytes: {number(point.value)}{between}"
        place = f"translate({x:.1f} {y:.1f})"
        parts.append(f'<path class="mark" d="{shape}" transform="{place}"><title>{escape(title)}</title></path>')
    return f'<g class="{curve.style}">{"".join(parts)}</g>'


def _own(chart: Chart, frame: _Frame) -> list[str]:
    """The word "own" at points that are on no line, above and below in turn."""
    points = [(curve.style, point) for curve in chart.curves if not curve.joined for point in curve.points]
    return [
        f'<g class="{style}"><text class="near" x="{frame.x(point.share):.1f}" '
        f'y="{frame.y(point.value) + (18 if i % 2 else -9):.1f}" text-anchor="middle">own</text></g>'
        for i, (style, point) in enumerate(points)
    ]


def _labels(chart: Chart, frame: _Frame) -> list[str]:
    """Names to the right of the lines' ends, pushed apart, each tied to its end."""
    ends = [(frame.y(value), frame.right, name, style) for name, style, value in chart.levels]
    for curve in chart.curves:
        if curve.joined and curve.points:
            last = max(curve.points, key=lambda p: p.share)
            ends.append((frame.y(last.value), frame.x(last.share), curve.name, curve.style))
    ends.sort(key=lambda end: end[0])
    places = _apart([end[0] for end in ends], frame.top, frame.bottom)
    return [
        f'<g class="{style}"><path class="tie" d="M{x + 5:.1f} {y:.1f}L{frame.right + 12:.1f} {place:.1f}"/>'
        f'<text class="label" x="{frame.right + 15:.1f}" y="{place + 4:.1f}">{escape(name)}</text></g>'
        for (y, x, name, style), place in zip(ends, places, strict=True)
    ]


def _apart(wanted: Sequence[float], top: float, bottom: float) -> list[float]:
    """Places near the wanted ones, in the same order, at least a label apart; squeezed if there is no room."""
    gap = min(LABEL, (bottom - top) / max(1, len(wanted) - 1))
    places: list[float] = []
    for place in wanted:
        places.append(max(place, places[-1] + gap if places else top))
    limit = bottom
    for i in reversed(range(len(places))):
        places[i] = min(places[i], limit)
        limit = places[i] - gap
    return places
