"""The page of a run: what happened, in one sentence; matched pictures, curves, warning signs.

Reads what the run folder holds and needs no network, so that it can be written again at any time.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from markupsafe import Markup
from PIL import Image

from ddpo import config
from ddpo.evaluation import templates
from ddpo.evaluation.evidence import (
    Json,
    alone,
    read,
    tasks,
)
from ddpo.evaluation.pages import curves as charts
from ddpo.evaluation.pages import gallery, letters
from ddpo.evaluation.pages.figures import before_after, curves
from ddpo.records.files import whole

ITERATIONS, PICTURES = 6, 8
"""Iterations, and pictures of each, that the page shows of samples/."""


def check(run_dir: str | Path) -> None:
    """Raises UserError for a folder of neither a run nor an evaluation."""
    if not (Path(run_dir) / "evaluation" / "results.json").is_file():
        config.of_run(run_dir)


def write(run_dir: Path) -> Path:
    """Write index.html and what it shows: small pictures, before_after.png, curves.png.

    A run without an evaluation gets a page of its curves and samples. Returns the page's path.
    """
    run, evaluation = read(run_dir), run_dir / "evaluation"
    evaluation.mkdir(exist_ok=True)
    if run.metrics:
        curves(run).savefig(evaluation / "curves.png", dpi=130)
    if run.pairs:
        before_after(run).save(evaluation / "before_after.png")
    if sheet := letters.picture(evaluation):
        sheet.savefig(evaluation / "sequences.png", dpi=130)
    gallery.write_small(evaluation, run.matches)
    with whole(run_dir / "index.html") as aside:
        aside.write_text(html(run_dir), "utf-8")
    return run_dir / "index.html"


def html(run_dir: Path, live: str = "") -> str:
    """The page as text, from what the folder holds now; nothing is written.

    `live` is a script that whoever serves the page adds to it.
    """
    run, evaluation = read(run_dir), run_dir / "evaluation"
    files = [run_dir / "config.yaml", run_dir / "provenance.json"]
    matches = sorted(run.matches, key=lambda match: _place(run.sets, match.set))
    return templates.render(
        "report.html.j2",
        run,
        cards=gallery.cards(evaluation, matches, run.columns, run.scores),
        curves=charts.curves(run) if run.metrics else [],
        histograms=charts.histograms(run),
        spreads=charts.spreads(run),
        measures=charts.SPREAD,
        tasks=tasks(run),
        alone=alone(run),
        before_after=bool(run.pairs) and (evaluation / "before_after.png").is_file(),
        words=(evaluation / "sequences.png").is_file(),
        samples=_training_samples(run_dir),
        texts={file.stem: file.read_text("utf-8") for file in files if file.exists()},
        live=Markup(live),
    )


def _place(sets: Sequence[str], name: str) -> int:
    return list(sets).index(name) if name in sets else len(sets)


def _training_samples(run_dir: Path) -> list[tuple[int, list[Json]]]:
    """Pictures of samples/ at a few evenly spaced iterations, the first number in a path."""
    found: dict[int, list[Path]] = {}
    for path in sorted((run_dir / "samples").rglob("*.png")):
        name = path.relative_to(run_dir).as_posix()
        found.setdefault(int((re.findall(r"\d+", name) or [0])[0]), []).append(path)
    numbers = sorted(found)
    places = np.linspace(0, len(numbers) - 1, min(ITERATIONS, len(numbers))).round().astype(int)
    chosen = [numbers[i] for i in places]
    return [(i, [_picture(run_dir, path) for path in found[i][:PICTURES]]) for i in chosen]


def _picture(run_dir: Path, path: Path) -> Json:
    """Its path and size, so that a page has its place before it is loaded."""
    with Image.open(path) as picture:
        width, height = picture.size
    return {"path": path.relative_to(run_dir).as_posix(), "width": width, "height": height}
