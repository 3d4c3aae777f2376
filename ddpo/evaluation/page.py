"""The page of a run: what happened, in one sentence; matched pictures, curves, warning signs.

Reads what the run folder holds and needs no network, so that it can be written again at any time.
"""

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from ddpo.evaluation.evidence import GUARD_ALERT, Run, name_of, read, rows, score_text, signs
from ddpo.evaluation.figures import before_after, curves
from ddpo.records.files import whole

ITERATIONS, PICTURES = 6, 8
"""Iterations, and pictures of each, that the page shows of samples/."""


def write(run_dir: Path) -> Path:
    """Write index.html, evaluation/curves.png and, with an evaluation, evaluation/before_after.png.

    A run without an evaluation gets a page of its curves and samples. Returns the page's path.
    """
    run, pictures = read(run_dir), run_dir / "evaluation"
    pictures.mkdir(exist_ok=True)
    if run.metrics:
        curves(run).savefig(pictures / "curves.png", dpi=130)
    if run.pairs:
        before_after(run).save(pictures / "before_after.png")
    files = [run_dir / "config.yaml", run_dir / "provenance.json"]
    texts = {file.stem: file.read_text("utf-8") for file in files if file.exists()}
    with whole(run_dir / "index.html") as aside:
        page = render("report.html.j2", run, samples=_training_samples(run_dir), texts=texts)
        aside.write_text(page, "utf-8")
    return run_dir / "index.html"


def render(template: str, run: Run, **values: Any) -> str:
    """The page or the card from the template beside this file."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        keep_trailing_newline=True,
        autoescape=jinja2.select_autoescape(["html.j2"]),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"typeset": _typeset, "score": score_text, "called": name_of}
    environment.filters["json"] = partial(json.dumps, indent=2)
    values |= {
        "run": run,
        "config": run.config,
        "name": run.folder.resolve().name,
        "alert": GUARD_ALERT,
    }
    return environment.get_template(template).render(rows=rows(run), signs=signs(run), **values)


def _training_samples(run_dir: Path) -> list[tuple[int, list[str]]]:
    """Pictures of samples/ at a few evenly spaced iterations, the first number in a path."""
    warnings: dict[int, list[str]] = {}
    for path in sorted((run_dir / "samples").rglob("*.png")):
        name = path.relative_to(run_dir).as_posix()
        warnings.setdefault(int((re.findall(r"\d+", name) or [0])[0]), []).append(name)
    numbers = sorted(warnings)
    places = np.linspace(0, len(numbers) - 1, min(ITERATIONS, len(numbers))).round().astype(int)
    return [(numbers[i], warnings[numbers[i]][:PICTURES]) for i in places]


def _typeset(text: str) -> str:
    """A true minus sign before numbers, and an arrow."""
    return re.sub(r"(?<![\w-])-(?=\d)", "−", text).replace("->", "→")
