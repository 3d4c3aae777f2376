"""Charts of a page as inline SVG, which a script of the page makes tell its values on hover.

Colors are left to the page's style (the classes s0, s1, ...), so that light and dark both fit.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from markupsafe import Markup
from matplotlib.ticker import MaxNLocator

WIDTH, HEIGHT = 420, 230
"""Units of a chart's drawing; the page scales it to its place."""

LEFT, RIGHT, TOP, BOTTOM = 54, 10, 8, 34
"""Units around the plot: numbers of the axes, and the name of the horizontal one."""

POINTS = 2000
"""At most as many points of a line are drawn, evenly chosen."""

COLORS = 6
"""Colors of the page's style; further series begin again with the first."""

BINS = 24
"""Bars of a histogram."""


@dataclass(frozen=True)
class Series:
    """One line or cloud of a chart.

    low, high  the ends of a band or of error bars, as long as y
    names      what a point is called on hover; without them it is its x
    color      number of its color, if not its place in the chart
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    names: Sequence[str] = ()
    color: int | None = None


Kind = Literal["line", "front", "steps"]


def chart(
    title: str,
    series: Sequence[Series],
    x_label: str = "iteration",
    y_label: str = "",
    kind: Kind = "line",
    zero: bool = False,
) -> Markup:
    """A figure with its title, a legend for more than one series, and the drawing.

    `kind` is "line" (y over x), "front" (points that are joined in their order) or "steps" (the
    bars of a histogram, x their left edges). `zero` makes the vertical axis begin there. Points
    that are not finite are left out; a chart without any says so.
    """
    shown = [known for each in series if (known := _known(each)).x]
    if not shown:
        text = Markup('<figure class="chart"><figcaption><b>{}</b></figcaption>{}</figure>')
        return text.format(title, Markup('<p class="faint">not recorded</p>'))
    axes = _Axes.around(shown, zero, edge=kind == "steps")
    colors = [(i if each.color is None else each.color) % COLORS for i, each in enumerate(shown)]
    drawn = [_drawn(each, color, axes, kind) for each, color in zip(shown, colors, strict=True)]
    legend = [
        Markup('<span class="s{}"><i></i>{}</span>').format(color, each.label)
        for each, color in zip(shown, colors, strict=True)
        if len(shown) > 1 or (kind == "front" and each.label)
    ]
    told = {
        "kind": kind,
        "x": x_label,
        "y": y_label,
        "plot": [LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM],
        "range": [*axes.x, *axes.y],
        "series": [
            {"label": each.label, "color": color, "x": _rounded(each.x), "y": _rounded(each.y)}
            | ({"names": list(each.names)} if each.names else {})
            for each, color in zip(shown, colors, strict=True)
        ],
    }
    return Markup(
        '<figure class="chart"><figcaption><b>{title}</b>{legend}</figcaption>'
        '<svg viewBox="0 0 {width} {height}" role="img" tabindex="0" aria-label="{words}" '
        'data-chart="{told}">{axes}{drawn}</svg></figure>'
    ).format(
        title=title,
        legend=Markup("").join(legend),
        width=WIDTH,
        height=HEIGHT,
        words=_words(title, shown, x_label),
        told=json.dumps(told, separators=(",", ":")),
        axes=axes.drawing(x_label, y_label),
        drawn=Markup("").join(drawn),
    )


def histogram(title: str, columns: Mapping[str, Sequence[float]]) -> Markup:
    """How often each value came up in each column, over common bins; NaN is left out."""
    known = {
        name: np.array([v for v in values if math.isfinite(v)]) for name, values in columns.items()
    }
    together = np.concatenate([*known.values(), np.zeros(0)])
    if not len(together):
        return chart(title, [])
    low, high = float(together.min()), float(together.max())
    edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
    series = [
        Series(name, edges.tolist(), [*map(float, np.histogram(values, edges)[0]), 0.0])
        for name, values in known.items()
    ]
    return chart(title, series, x_label="", y_label="samples", kind="steps", zero=True)


@dataclass(frozen=True)
class _Axes:
    """The ranges of the plot, in units of the data."""

    x: tuple[float, float]
    y: tuple[float, float]

    @classmethod
    def around(cls, series: Sequence[Series], zero: bool, edge: bool) -> "_Axes":
        """What holds all points and bands, with a little room; of `edge` no room to the sides."""
        xs = [value for each in series for value in each.x]
        ys = [
            value
            for each in series
            for part in (each.y, each.low, each.high)
            for value in part
            if math.isfinite(value)
        ]
        x, y = _spread(xs, 0 if edge else 0.02), _spread(ys, 0.06)
        if zero and min(ys) >= 0:
            y = (0.0, y[1])
        return cls(x, y)

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Where a point is drawn."""
        across = (x - self.x[0]) / (self.x[1] - self.x[0])
        up = (y - self.y[0]) / (self.y[1] - self.y[0])
        return (
            LEFT + across * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM),
        )

    def drawing(self, x_label: str, y_label: str) -> Markup:
        """The numbers of both axes, a faint line at each of the vertical one, and their names."""
        parts = []
        for value in _ticks(*self.y, 5):
            y = self.place(self.x[0], value)[1]
            parts.append(
                Markup('<path class="rule" d="M{} {:.1f}H{}"/>').format(LEFT, y, WIDTH - RIGHT)
            )
            text = Markup('<text x="{}" y="{:.1f}" text-anchor="end">{}</text>')
            parts.append(text.format(LEFT - 6, y + 3.5, _number(value)))
        for value in _ticks(*self.x, 6):
            x = self.place(value, self.y[0])[0]
            text = Markup('<text x="{:.1f}" y="{}" text-anchor="middle">{}</text>')
            parts.append(text.format(x, HEIGHT - BOTTOM + 14, _number(value)))
        middle = (LEFT + WIDTH - RIGHT) / 2
        text = Markup('<text class="label" x="{}" y="{}" text-anchor="middle">{}</text>')
        parts.append(text.format(middle, HEIGHT - 5, x_label) if x_label else Markup(""))
        turned = Markup(
            '<text class="label" transform="translate(9 {}) rotate(-90)" text-anchor="middle">'
            "{}</text>"
        )
        height = (TOP + HEIGHT - BOTTOM) / 2
        parts.append(turned.format(height, y_label) if y_label else Markup(""))
        return Markup("").join(parts)


def _known(series: Series) -> Series:
    """Its finite points, thinned."""
    rows = [
        i
        for i, (x, y) in enumerate(zip(series.x, series.y, strict=True))
        if math.isfinite(x) and math.isfinite(y)
    ]
    if len(rows) > POINTS:
        rows = [rows[i] for i in np.linspace(0, len(rows) - 1, POINTS).round().astype(int)]

    def chosen(values: Sequence[Any]) -> list[Any]:
        return [values[i] for i in rows] if len(values) else []

    return Series(
        series.label,
        chosen(series.x),
        chosen(series.y),
        chosen(series.low),
        chosen(series.high),
        chosen(series.names),
        series.color,
    )


def _drawn(series: Series, color: int, axes: _Axes, kind: Kind) -> Markup:
    """The lines, dots, bands and bars of one series."""
    points = [axes.place(x, y) for x, y in zip(series.x, series.y, strict=True)]
    parts = [_spread_of(series, axes, kind)] if len(series.low) else []
    if kind == "steps":
        # each bar reaches to the left edge of the next one; the last point is the end of the last
        tops = [place for a, b in pairwise(points) for place in (a, (b[0], a[1]))]
        floor = axes.place(axes.x[0], axes.y[0])[1]
        points = [(points[0][0], floor), *tops, (points[-1][0], floor)]
        parts.append(Markup('<path class="band" d="{}Z"/>').format(_path(points)))
    parts.append(Markup('<path class="line" d="{}"/>').format(_path(points)))
    if kind == "front" or (kind == "line" and len(points) < 30):
        radius = 3 if kind == "front" else 2
        dots = (f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}"/>' for x, y in points)
        parts.append(Markup("".join(dots)))
    return Markup('<g class="s{}">{}</g>').format(color, Markup("").join(parts))


def _spread_of(series: Series, axes: _Axes, kind: Kind) -> Markup:
    """From low to high: a bar through each point of a front, a band along a line."""
    low, high = (
        [axes.place(x, y) for x, y in zip(series.x, ends, strict=True)]
        for ends in (series.low, series.high)
    )
    if kind != "front":
        return Markup('<path class="band" d="{}Z"/>').format(_path([*low, *reversed(high)]))
    bars = [
        f"M{x:.1f} {one:.1f}V{other:.1f}"
        for (x, one), (_, other) in zip(low, high, strict=True)
        if math.isfinite(one) and math.isfinite(other)
    ]
    return Markup('<path class="bar" d="{}"/>').format("".join(bars))


def _path(points: Sequence[tuple[float, float]]) -> str:
    known = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in known) if known else "M0 0"


def _spread(values: Sequence[float], room: float) -> tuple[float, float]:
    """A range that holds the values, with a part of it as room on both sides; never empty."""
    low, high = min(values), max(values)
    if not high > low:
        size = abs(low) * 0.05 or 0.5
        return low - size, high + size
    return low - room * (high - low), high + room * (high - low)


def _ticks(low: float, high: float, count: int) -> list[float]:
    values = MaxNLocator(count, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    return [float(v) for v in values if low <= v <= high]


def _number(value: float) -> str:
    """A tick's number, without the noise of its rounding and with a true minus sign."""
    return f"{0.0 if abs(value) < 1e-12 else value:.5g}".replace("-", "−")


def _rounded(values: Sequence[float]) -> list[float]:
    """Six digits: what a reader can use, and half as many bytes."""
    return [float(f"{value:.6g}") for value in values]


def _words(title: str, series: Sequence[Series], x_label: str) -> str:
    """The chart for those who do not see it: where each line begins and ends."""
    lines = [
        f"{each.label or 'from'} {_number(each.y[0])} to {_number(each.y[-1])}" for each in series
    ]
    return f"{title}, over {x_label}: {'; '.join(lines)}" if x_label else f"{title}: histogram"
