"""The page of a run folder made of drawn scenes: busy backgrounds as base, plain ones as tuned."""

import json
import math
import re
import shutil
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from ddpo.evaluation import evidence, stats
from ddpo.evaluation import page as report
from ddpo.evaluation.pages import figures
from ddpo.images import GUARDS, from_pil
from ddpo.models.emoji.scenes import ANIMALS, HELDOUT_ANIMALS, caption, draw

JPEG, JUDGE = "jpeg_compressibility", "emoji_recognition"

CONFIG: dict[str, Any] = {
    "model": {"name": "stable_diffusion", "pretrained": "emoji"},
    "prompts": {"name": "animals"},
    "rewards": [{"name": JPEG, "weight": 1.0}],
    "eval_rewards": [{"name": JUDGE}],
    "objective": {"name": "ddpo", "clip_range": 0.0016},
    "trainer": {"iterations": 40, "prompts_per_iteration": 32},
    "evaluation": {"prompts": "animals_heldout", "every": 10},
    "seed": 0,
    "run_dir": "runs/demo",
}


def write_json_lines(path: Path, objects: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(o) + "\n" for o in objects))


def write_training(folder: Path, iterations: int = 40) -> None:
    """config.yaml, provenance.json, metrics.jsonl and samples/ of a run that goes well."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG, sort_keys=False))
    (folder / "provenance.json").write_text(
        json.dumps({"packages": {"torch": "2.15.0"}, "num_processes": 1}, indent=2)
    )
    lines = []
    for i in range(1, iterations + 1):
        done = 1 - math.exp(-i / 15)
        lines.append(
            {
                "iteration": i,
                "images_seen": 256 * i,
                "reward/mean": -3.2 + 0.6 * done + 0.02 * rng.normal(),
                "reward/std": 0.5 - 0.2 * done,
                f"reward/{JPEG}": -3.2 + 0.6 * done,
                "ratio/mean": 1.0,
                "ratio/max_dev": abs(0.004 + 0.001 * rng.normal()),
                "clip_frac": abs(0.15 + 0.03 * rng.normal()),
                "approx_kl": abs(2e-6 + 3e-7 * rng.normal()),
                "kl_ref": None,
                "grad_norm": 0.3,
                "guard/brightness": 0.5 + 0.02 * done,
                "guard/saturation": 0.45 + 0.02 * rng.normal(),
                "guard/edge_density": 0.5 * (1 - 0.8 * done),
                "guard/color_entropy": 4.4 - 2.5 * done,
                "time/total": 4.2,
            }
        )
    write_json_lines(folder / "metrics.jsonl", lines)
    (folder / "samples").mkdir()
    for i in range(0, iterations + 1, 10):
        for number, animal in enumerate(("fox", "cat", "horse")):
            draw(f"a {animal}", 0, "plain" if i > 20 else "checks").save(
                folder / "samples" / f"{i:06d}_{number}.png"
            )


def write_evaluation(folder: Path) -> None:
    """Two seeds of 20 training prompts and of 8 held-out ones; the judge falls on the held-out
    prompts."""
    rng = np.random.default_rng(1)
    (folder / "evaluation" / "images").mkdir(parents=True)
    activities = (None, "riding a bike", "playing chess", "washing dishes")
    samples: list[dict[str, Any]] = []
    for name, animals, count in (("animals_heldout", HELDOUT_ANIMALS, 8), ("animals", ANIMALS, 20)):
        for seed in range(2 * count):
            prompt = caption(list(animals)[seed // 2], activities[seed // 2 % 4])
            for column in ("base", "tuned"):
                tuned, file = column == "tuned", f"images/{name}_{seed:05d}_{column}.png"
                picture = draw(
                    prompt, seed, "plain" if tuned else ("mosaic", "confetti", "checks")[seed % 3]
                )
                picture.save(folder / "evaluation" / file)
                scores: dict[str, float | None] = {
                    JPEG: -3.2 + 0.6 * tuned + 0.3 * rng.normal(),
                    JUDGE: 0.9 - 0.3 * (tuned and name != "animals") + 0.05 * rng.normal(),
                }
                scores |= {guard: f(from_pil([picture])).item() for guard, f in GUARDS.items()}
                row = {"set": name, "prompt": prompt, "seed": seed, "column": column, "image": file}
                samples.append({**row, "scores": scores})
    samples[-1]["scores"][JUDGE] = None
    sets: dict[str, Any] = {}
    for name in ("animals_heldout", "animals"):  # not in the order in which the page shows them
        for score in samples[0]["scores"]:
            base, tuned = (
                np.array(
                    [s["scores"][score] for s in samples if (s["set"], s["column"]) == key], float
                )
                for key in ((name, "base"), (name, "tuned"))
            )
            sets.setdefault(name, {})[score] = {
                "base": stats.summary(base),
                "tuned": stats.summary(tuned),
                "difference": stats.paired(base, tuned),
                "win_rate": stats.win_rate(base, tuned),
            }
    write_json_lines(folder / "evaluation" / "samples.jsonl", samples)
    results = {"sets": sets, "versions": {"ddpo": "0.1.0"}, "config": {"samples_per_prompt": 2}}
    (folder / "evaluation" / "results.json").write_text(json.dumps(results))


class Page(HTMLParser):
    """What a reader sees of a page: its words, table rows, links and sources; checks that elements
    nest."""

    VOID = ("meta", "img", "br", "link", "input")

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.targets: list[str] = []
        self.text, self.rows = "", [[]]
        self.feed(file.read_text("utf-8"))
        self.text = re.sub(r"\s+", " ", self.text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.targets += [value for key, value in attrs if key in ("src", "href") and value]
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data
            if "td" in self.open and data.strip():
                self.rows[-1].append(data.strip())


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "demo"
    write_training(folder)
    write_evaluation(folder)
    report.write(folder)
    return folder


@pytest.fixture
def run_dir(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run to spoil."""
    return Path(shutil.copytree(finished, tmp_path / "demo"))


def test_sentence_has_the_documented_form() -> None:
    entry = {
        "base": {"mean": -3.2, "se": 0.05, "n": 90},
        "tuned": {"mean": -2.61, "se": 0.04, "n": 90},
        "difference": {"mean": 0.59, "low": 0.52, "high": 0.66},
        "win_rate": 0.87,
    }
    assert evidence.sentence("animals", JPEG, entry) == (
        "jpeg_compressibility on animals: -3.20 -> -2.61 "
        "(+0.59, 95 % interval 0.52 to 0.66; better on 87 % of matched seeds)"
    )


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.1, 0.2, "rose"),
        (-0.2, -0.1, "fell"),
        (-0.1, 0.1, "no clear change"),
        (0.0, 0.1, "no clear change"),
        (None, None, "no clear change"),
        (math.nan, math.nan, "no interval"),
    ],
)
def test_verdict_asks_the_interval(low: float | None, high: float | None, expected: str) -> None:
    assert evidence.verdict({"mean": 0.0, "low": low, "high": high}) == expected


def test_selection_is_evenly_spaced_with_the_lowest_seed() -> None:
    matches = [
        evidence.Match(s, f"p{i}", seed) for i in range(10) for seed in (7, 3) for s in ("a", "b")
    ]
    chosen = evidence.select(matches, "a", 4)
    assert [(m.set, m.prompt, m.seed) for m in chosen] == [("a", f"p{i}", 3) for i in (0, 2, 5, 7)]
    assert [m.prompt for m in evidence.select(matches, "b", 99)] == [f"p{i}" for i in range(10)]
    assert evidence.select(matches, "c", 4) == []


def test_page_tells_what_the_results_say(finished: Path) -> None:
    results, page = evidence.read(finished).results, Page(finished / "index.html")
    found = results["sets"]["animals"][JPEG]
    base, tuned, change = (found[key]["mean"] for key in ("base", "tuned", "difference"))
    lead = f"{JPEG} on animals: {base:.2f} -> {tuned:.2f} ({change:+.2f}, 95 % interval"
    assert lead.replace("->", "→").replace("-", "−") in page.text
    rows = [row for row in page.rows if row and row[0] in results["sets"]]
    assert [(row[0], row[1]) for row in rows] == [
        (name, score) for name in ("animals", "animals_heldout") for score in (JPEG, JUDGE)
    ]
    for row in rows:
        entry = results["sets"][row[0]][row[1]]
        numbers = [
            float(cell.replace("−", "-")) for cell in row if re.fullmatch(r"[−+]?[\d.]+", cell)
        ]
        expected = [
            entry["base"]["mean"],
            entry["tuned"]["mean"],
            entry["difference"]["mean"],
            entry["base"]["n"],
        ]
        assert numbers == pytest.approx(expected, abs=0.0051)
        assert f"{100 * entry['win_rate']:.0f} %" in row
        assert ("trained on" in row) == (row[1] == JPEG)


def test_page_flags_the_falling_judge_and_the_guards(finished: Path) -> None:
    text = Page(finished / "index.html").text
    notice = text[text.index("signs of over-optimization:") : text.index("See below")]
    assert f"{JUDGE} on animals_heldout fell" in notice
    assert f"{JUDGE} on animals " not in notice and JPEG not in notice
    assert "edge_density −" in notice and "brightness" not in notice


def test_a_gain_that_stays_on_the_training_prompts_is_flagged(run_dir: Path) -> None:
    file = run_dir / "evaluation" / "results.json"
    results = json.loads(file.read_text())
    results["sets"]["animals_heldout"][JPEG]["difference"] = {
        "mean": 0.01,
        "low": -0.1,
        "high": 0.12,
    }
    file.write_text(json.dumps(results))
    assert f"{JPEG} on animals_heldout no clear change" in Page(report.write(run_dir)).text


def test_page_stands_alone_and_its_files_exist(finished: Path) -> None:
    page = Page(finished / "index.html")
    files = [target for target in page.targets if not target.startswith(("#", "data:"))]
    assert len(files) > 2 * 2 * 56
    assert [target for target in files if not (finished / target).is_file()] == []
    assert "http" not in (finished / "index.html").read_text().replace("http-equiv", "")


def test_cards_carry_the_scores_of_every_column(finished: Path) -> None:
    html, run = (finished / "index.html").read_text(), evidence.read(finished)
    tables = [json.loads(unescape(table)) for table in re.findall(r'data-table="([^"]*)"', html)]
    matches = sorted(run.matches, key=lambda match: match.set)  # the training prompts come first
    assert run.scores == [JPEG, JUDGE]
    for table, match in zip(tables, matches, strict=True):
        for row, score in zip(table, run.scores, strict=True):
            scores = [match.scores[column][score] for column in ("base", "tuned")]
            assert row == [None if s is None else pytest.approx(s, rel=1e-5) for s in scores]
    assert any(None in row for table in tables for row in table)


def test_before_after_shows_the_pictures(finished: Path) -> None:
    run = evidence.read(finished)
    page = np.asarray(figures.before_after(run))
    assert np.array_equal(
        page, np.asarray(Image.open(finished / "evaluation" / "before_after.png"))
    )
    for match in (
        *evidence.select(run.matches, "animals", 8),
        *evidence.select(run.matches, "animals_heldout", 4),
    ):
        for file in match.images.values():
            picture = Image.open(finished / "evaluation" / file).resize(
                (128, 128), Image.Resampling.LANCZOS
            )
            window = np.asarray(picture)
            corners = np.argwhere((page[:-128, :-128] == window[0, 0]).all(-1))
            assert any(np.array_equal(page[y : y + 128, x : x + 128], window) for y, x in corners)


def test_everything_is_escaped(run_dir: Path) -> None:
    evil = "<script>alert('x')</script>\" onload=\"y"
    for name in ("config.yaml", "evaluation/results.json", "evaluation/samples.jsonl"):
        content = (run_dir / name).read_text()
        quoted = json.dumps(evil)[1:-1]
        content = content.replace(
            "name: animals\n", f"name: '{evil.replace(chr(39), chr(39) * 2)}'\n"
        )
        content = content.replace('"animals"', f'"{quoted}"').replace("a cat", quoted)
        (run_dir / name).write_text(content)
    before = Page(run_dir / "index.html").tags
    page = Page(report.write(run_dir))
    assert page.tags == before
    assert f"{JPEG} on {evil}" in page.text.replace("−", "-")


def test_without_an_evaluation_there_are_curves_and_samples(tmp_path: Path) -> None:
    write_training(tmp_path / "run", iterations=100)
    page = Page(report.write(tmp_path / "run"))
    assert "not been evaluated" in page.text and "signs of over-optimization" not in page.text
    assert page.tags.count("svg") == 6 and "dialog" not in page.tags
    shown = sorted({int(t[8:14]) for t in page.targets if t.startswith("samples/")})
    assert shown == [0, 20, 40, 60, 80, 100]


@pytest.mark.parametrize(
    "metrics", ["", '{"iteration": 1}\n', '{"iteration": 1, "reward/mean": null}\n{"itera']
)
def test_metrics_may_be_missing_null_or_torn(run_dir: Path, metrics: str) -> None:
    (run_dir / "metrics.jsonl").write_text(metrics)
    assert "Before and after" in Page(report.write(run_dir)).text


def test_a_run_that_has_only_begun_gets_a_page(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    assert "not been evaluated" in Page(report.write(tmp_path)).text


def test_curves_show_what_was_logged(finished: Path) -> None:
    run = evidence.read(finished)
    axes = {ax.get_title().split(",")[0]: ax for ax in figures.curves(run).axes}
    line = axes["reward/mean"].lines[0]
    assert np.asarray(line.get_xdata()).tolist() == list(range(1, 41))
    assert np.asarray(line.get_ydata()).tolist() == [row["reward/mean"] for row in run.metrics]
    guards = {line.get_label(): line.get_ydata() for line in axes["guards"].lines}
    assert guards["edge_density"][-1] == pytest.approx(  # type: ignore[index]
        run.metrics[-1]["guard/edge_density"] / run.metrics[0]["guard/edge_density"]
    )


def test_writing_twice_gives_the_same_page(run_dir: Path) -> None:
    first = report.write(run_dir).read_bytes()
    assert report.write(run_dir).read_bytes() == first


def test_evaluations_on_the_way_are_drawn_from_before_the_first_update(run_dir: Path) -> None:
    rows = [
        {
            "iteration": i,
            "means": {JPEG: -3 + i / 10, JUDGE: 0.9 - i / 100, "kl": i / 5, "vendi": 4},
        }
        for i in (0, 10, 20)
    ]
    write_json_lines(run_dir / "evaluations.jsonl", rows)
    text = report.write(run_dir).read_text()
    charts = [json.loads(unescape(c)) for c in re.findall(r'data-chart="([^"]*)"', text)]
    fronts = {(c["x"], c["y"]): c["series"][0] for c in charts if c["kind"] == "front"}
    assert {*fronts} == {(f"eval/{JPEG}", f"eval/{JUDGE}"), ("eval/kl", f"eval/{JUDGE}")}
    front = fronts[f"eval/{JPEG}", f"eval/{JUDGE}"]
    assert (front["x"], front["y"]) == ([-3, -2, -1], [0.9, 0.8, 0.7])
    assert front["names"] == ["iteration 0", "iteration 10", "iteration 20"]


def test_the_spread_of_each_column_is_a_table(run_dir: Path) -> None:
    file = run_dir / "evaluation" / "results.json"
    results = json.loads(file.read_text())
    base = {"kl": {"mean": None, "se": None, "n": 0}, "vendi": 12.5}
    tuned = {"kl": {"mean": 1.25, "se": 0.1, "n": 8}, "vendi": 7.25, "cmmd": -0.031}
    results["spread"] = {"animals": {"base": base, "tuned": tuned}}
    file.write_text(json.dumps(results))
    rows = [row for row in Page(report.write(run_dir)).rows if row[1:2] in (["base"], ["tuned"])]
    assert rows == [
        ["animals", "base", "–", "12.5", "–"],
        ["animals", "tuned", "1.25", "7.25", "−0.031"],
    ]
