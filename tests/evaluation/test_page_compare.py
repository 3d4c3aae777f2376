"""The page of several runs: what is one line, its interval, and whose pictures share a column."""

import json
import re
import shutil
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import pytest
import yaml
from browser import Browser
from test_report import JPEG, JUDGE, write_evaluation, write_json_lines, write_training

from ddpo.__main__ import main
from ddpo.evaluation import evidence
from ddpo.evaluation.pages import comparison


def train(folder: Path, seed: int, **objective: Any) -> None:
    """A drawn run of ten iterations, whose numbers depend on the seed."""
    write_training(folder, iterations=10)
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    settings |= {"seed": seed, "run_dir": str(folder)}
    settings["objective"] |= objective
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    (folder / "provenance.json").write_text('{"num_processes": 2}')
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    noise = np.random.default_rng(seed)
    for row in rows:
        row |= {"reward/mean": float(noise.normal()), "kl_ref": 0.01 * row["iteration"]}
        if row["iteration"] % 5 == 0:
            row |= {f"eval/{JPEG}": float(noise.normal()), f"eval/{JUDGE}": float(noise.normal())}
    write_json_lines(folder / "metrics.jsonl", rows)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("compared")
    for seed in range(3):
        train(root / f"a{seed}", seed)
    train(root / "b", 0, clip_range=0.01)
    write_evaluation(root / "a0")
    shutil.copytree(root / "a0" / "evaluation", root / "b" / "evaluation")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        yield root


@pytest.fixture(scope="module")
def groups(root: Path) -> list[comparison.Group]:
    names = ("a0", "b", "a1", "a2")
    return comparison.grouped({name: evidence.read(root / name) for name in names})


@pytest.mark.parametrize(
    ("freedom", "quantile"),
    [(1, 12.706), (2, 4.303), (4, 2.776), (5, 2.571), (7, 2.365), (15, 2.131), (30, 2.042)],
)
def test_students_t_is_that_of_the_tables(freedom: int, quantile: float) -> None:
    assert comparison.student_t(freedom) == pytest.approx(quantile, abs=3.5e-3)


def test_runs_that_differ_in_the_seed_alone_are_one_group(groups: list[comparison.Group]) -> None:
    assert [group.label for group in groups] == ["a0 (3 seeds)", "b"]
    assert [run.folder.name for run in groups[0].runs] == ["a0", "a1", "a2"]
    assert comparison.differences(groups) == [("objective.clip_range", [0.0016, 0.01])]


def told(drawing: str) -> dict[str, Any]:
    found = re.search(r'data-chart="([^"]*)"', drawing)
    assert found
    return json.loads(unescape(found[1]))


def test_a_line_is_the_mean_over_the_seeds(groups: list[comparison.Group]) -> None:
    drawings = dict(comparison.curves(groups))["reward/mean"]
    queries, hours, kl = (told(drawing)["series"] for drawing in drawings)
    rows = [run.metrics for run in groups[0].runs]
    means = [fmean(run[i]["reward/mean"] for run in rows) for i in range(10)]
    assert queries[0]["y"] == pytest.approx(means, rel=1e-5)
    assert queries[0]["x"] == [256 * i for i in range(1, 11)]
    # 4.2 s an iteration, on two processes
    assert hours[0]["x"] == pytest.approx([2 * 4.2 * i / 3600 for i in range(1, 11)], rel=1e-5)
    assert kl[0]["x"] == pytest.approx([0.01 * i for i in range(1, 11)], rel=1e-5)
    assert queries[1]["y"] == pytest.approx(
        [r["reward/mean"] for r in groups[1].runs[0].metrics], rel=1e-5
    )


def test_the_band_is_the_t_interval(groups: list[comparison.Group]) -> None:
    series = comparison._joined(groups[0], 0, comparison.AXES["reward queries"], "reward/mean")
    values = [run.metrics[3]["reward/mean"] for run in groups[0].runs]
    half = 4.30265 * stdev(values) / 3**0.5
    assert series.low[3] == pytest.approx(fmean(values) - half)
    assert series.high[3] == pytest.approx(fmean(values) + half)


def test_a_front_is_a_judge_over_the_trained_reward(groups: list[comparison.Group]) -> None:
    (front,) = comparison.fronts(groups)
    about, run = told(front), groups[1].runs[0]
    assert (about["x"], about["y"]) == (f"eval/{JPEG}", f"eval/{JUDGE}")
    rows = [row for row in run.metrics if f"eval/{JPEG}" in row]
    assert about["series"][1]["x"] == pytest.approx([r[f"eval/{JPEG}"] for r in rows], rel=1e-5)
    assert about["series"][1]["y"] == pytest.approx([r[f"eval/{JUDGE}"] for r in rows], rel=1e-5)
    assert about["series"][1]["names"] == ["iteration 5", "iteration 10"]


def test_the_difference_of_several_seeds_has_the_interval_of_their_means() -> None:
    changes = [{"mean": mean, "low": 0.0, "high": 1.0} for mean in (0.2, 0.4, 0.9)]
    found = comparison._interval(changes)
    assert found["mean"] == pytest.approx(0.5)
    assert found["high"] - found["mean"] == pytest.approx(4.30265 * 0.360555 / 3**0.5, rel=1e-5)
    assert comparison._interval(changes[:1]) == changes[0]


def test_equal_bases_share_a_column_and_others_do_not(root: Path) -> None:
    assert main(["compare", "a0", "b", "a1", "--out", "same"]) == 0
    page = (root / "same" / "index.html").read_text()
    assert "data-columns='[&#34;base&#34;, &#34;a0&#34;, &#34;b&#34;]'" in page
    other = root / "b" / "evaluation" / "images" / "animals_00000_base.png"
    kept = other.read_bytes()
    other.unlink()
    shutil.copyfile(other.with_name("animals_00001_base.png"), other)
    try:
        assert main(["compare", "a0", "b", "--out", "same"]) == 0
    finally:
        other.write_bytes(kept)
    page = (root / "same" / "index.html").read_text()
    assert "[&#34;base&#34;, &#34;a0&#34;, &#34;b base&#34;, &#34;b&#34;]" in page


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["a0", "a0"], "a0 is given twice"),
        (["a0", "nowhere"], "nowhere is not the folder of a run"),
        (["a0", "b", "--out", "a1"], "--out a1: holds something else"),
        (["a0", "b", "--out", "a1/config.yaml"], "is a file"),
    ],
)
def test_refused(
    words: list[str], line: str, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", *words]) == 2
    assert line in capsys.readouterr().err


@pytest.mark.browser
def test_stands_alone_without_a_complaint(browser: Browser, root: Path, tmp_path: Path) -> None:
    assert main(["compare", "a0", "b", "a1", "--out", str(tmp_path / "page")]) == 0
    moved = tmp_path / "moved"
    (tmp_path / "page").rename(moved)
    page = browser.page((moved / "index.html").as_uri(), width=390)
    page("document.querySelectorAll('img').forEach(image => { image.loading = 'eager'; })")
    page.wait("[...document.images].every(image => image.complete)")
    assert page.complaints == []
    assert [u for u in page.requests if not u.startswith((moved.as_uri(), "data:"))] == []
    assert page("document.documentElement.scrollWidth") <= 390
    page.close()
