"""Charts of the page: where points stand, what is told of them, and what is left out."""

import json
import math
import re
from html import unescape
from typing import Any

import numpy as np
import pytest

from ddpo.evaluation.pages import charts
from ddpo.evaluation.pages.charts import Series, chart, histogram


def told(drawing: str) -> dict[str, Any]:
    """What the page's script reads."""
    found = re.search(r'data-chart="([^"]*)"', drawing)
    assert found
    return json.loads(unescape(found[1]))


def line(drawing: str) -> np.ndarray:
    """The corners of the first line, in units of the data."""
    found = re.search(r'class="line" d="M([^"]*)"', drawing)
    assert found
    points = np.array([pair.split() for pair in found[1].split("L")], float)
    about = told(drawing)
    left, top, right, bottom = about["plot"]
    x0, x1, y0, y1 = about["range"]
    x = x0 + (points[:, 0] - left) / (right - left) * (x1 - x0)
    y = y0 + (bottom - points[:, 1]) / (bottom - top) * (y1 - y0)
    return np.stack([x, y], axis=1)


def test_points_stand_where_the_axes_say() -> None:
    x, y = [0.0, 1.0, 5.0, 10.0], [2.0, -1.0, 4.0, 0.5]
    drawing = chart("reward", [Series("reward", x, y)])
    assert line(drawing) == pytest.approx(np.stack([x, y], axis=1), abs=0.02)
    assert told(drawing)["series"] == [{"label": "reward", "color": 0, "x": x, "y": y}]


def test_a_tick_stands_at_its_number() -> None:
    drawing = chart("loss", [Series("loss", [0, 100], [0, 40])])
    about = told(drawing)
    left, top, right, bottom = about["plot"]
    x0, x1, y0, y1 = about["range"]
    across = re.findall(r'<text x="([\d.]+)" y="[\d.]+" text-anchor="middle">([^<]*)<', drawing)
    up = re.findall(r'<text x="[\d.]+" y="([\d.]+)" text-anchor="end">([^<]*)<', drawing)
    assert len(across) > 2 and len(up) > 2
    for x, value in across:
        assert float(x) == pytest.approx(
            left + (float(value) - x0) / (x1 - x0) * (right - left), abs=0.06
        )
    for y, value in up:
        wanted = bottom - (float(value) - y0) / (y1 - y0) * (bottom - top) + 3.5
        assert float(y) == pytest.approx(wanted, abs=0.06)


def test_what_is_not_finite_is_left_out() -> None:
    drawing = chart("x", [Series("x", [0, 1, 2, 3], [1, math.nan, math.inf, 2])])
    assert told(drawing)["series"][0]["x"] == [0, 3]
    assert "nan" not in drawing and "inf" not in drawing


def test_nothing_recorded_is_said() -> None:
    for series in ([], [Series("x", [1], [math.nan])]):
        drawing = chart("kl_ref", series)
        assert "not recorded" in drawing and "<svg" not in drawing


@pytest.mark.parametrize("value", [0.0, 3.0, -2e-6])
def test_a_constant_has_a_range_around_it(value: float) -> None:
    low, high = told(chart("x", [Series("x", [1, 2], [value, value])]))["range"][2:]
    assert low < value < high


def test_a_long_line_is_thinned_and_keeps_its_ends() -> None:
    x = list(range(10_001))
    kept = told(chart("x", [Series("x", x, [float(v) for v in x])]))["series"][0]["x"]
    assert len(kept) == charts.POINTS and kept[0] == 0 and kept[-1] == 10_000


def test_a_band_goes_from_low_to_high() -> None:
    series = Series("x", [0, 1], [1.0, 2.0], [0.5, 1.5], [1.5, 2.5])
    drawing = chart("x", [series])
    y0, y1 = told(drawing)["range"][2:]
    assert y0 < 0.5 and y1 > 2.5
    found = re.search(r'class="band" d="M([^"]*)Z"', drawing)
    assert found
    assert len(found[1].split("L")) == 4


def test_histogram_counts_as_numpy_does() -> None:
    rng = np.random.default_rng(0)
    columns = {"base": rng.normal(size=200), "tuned": rng.normal(1, 2, size=150)}
    drawing = histogram("x", {name: [*values, math.nan] for name, values in columns.items()})
    together = np.concatenate([*columns.values()])
    edges = np.linspace(together.min(), together.max(), charts.BINS + 1)
    for series in told(drawing)["series"]:
        counts = np.histogram(columns[series["label"]], edges)[0]
        assert series["y"][:-1] == counts.tolist()
        assert series["x"] == pytest.approx(edges, rel=1e-5)


def test_the_bars_of_a_histogram_are_as_high_as_the_counts() -> None:
    drawing = histogram("x", {"base": [0.0, 0.0, 0.0, 1.0]})
    corners = line(drawing)
    assert corners[:, 1].max() == pytest.approx(3, abs=0.02)
    assert corners[-2:, 1] == pytest.approx([1, 0], abs=0.02)


def test_words_are_escaped() -> None:
    evil = '<script>"x"</script>'
    drawing = chart(evil, [Series(evil, [0, 1], [0, 1]), Series("y", [0, 1], [1, 0])], evil, evil)
    assert "<script" not in drawing
    assert told(drawing)["series"][0]["label"] == evil
