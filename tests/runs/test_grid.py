"""`ddpo grid`: what stands in which column, and that a row has one noise."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from option_cases import world
from PIL import Image

from ddpo import config
from ddpo.__main__ import main
from ddpo.runs import grid
from ddpo.runs.finished import Run

PROMPT = "a fox"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with world(tmp_path_factory.mktemp("grid"), run=True) as root:
        yield root


Columns = dict[str, Image.Image]


@pytest.fixture
def drawn(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Gives the columns of a grid's first row, by title."""

    def columns(*words: str) -> Columns:
        seen: list[Columns] = []

        def table(
            cells: Any, rows: list[str], titles: list[str], *_: Any, **__: Any
        ) -> Image.Image:
            assert rows == [PROMPT]
            seen.append(dict(zip(titles, cells[0], strict=True)))
            return cells[0][0]

        monkeypatch.setattr(grid, "table", table)
        assert main(["grid", "run", *words, "--count", "1"]) == 0
        return seen[0]

    return columns


def same(one: Image.Image, other: Image.Image) -> bool:
    return np.array_equal(np.asarray(one), np.asarray(other))


def sampled(column: str, seed: int = 0, **changed: Any) -> Image.Image:
    """What the run itself draws, with its sampler or another one."""
    settings = config.load(Path("run") / "config.yaml")
    for name, value in changed.items():
        setattr(settings.sampler, name, value)
    return Run("run", settings=settings).sample([PROMPT], [seed], column)[0]


def test_base_and_checkpoints(drawn: Any) -> None:
    columns = drawn()
    assert list(columns) == ["base", "iteration 1", "iteration 2"]
    for title, column in {"base": "base", "iteration 1": "1", "iteration 2": "tuned"}.items():
        assert same(columns[title], sampled(column))
    assert not same(columns["base"], columns["iteration 2"])
    assert list(drawn("--checkpoint", "1")) == ["base", "1"]


def test_guidance_and_steps(drawn: Any) -> None:
    columns = drawn("--guidance_scale", "1", "--guidance_scale", "4", "--checkpoint", "base")
    assert list(columns) == ["guidance 1", "guidance 4"]
    for title, scale in {"guidance 1": 1.0, "guidance 4": 4.0}.items():
        assert same(columns[title], sampled("base", guidance_scale=scale))
    columns = drawn("--num_steps", "2", "--num_steps", "3")
    assert same(columns["3 steps"], sampled("tuned", num_steps=3))
    assert not same(columns["2 steps"], columns["3 steps"])


def test_seeds(drawn: Any) -> None:
    columns = drawn("--seed", "0", "--seed", "5")
    assert list(columns) == ["seed 0", "seed 5"]
    assert same(columns["seed 5"], sampled("tuned", seed=5))


def test_lora_scales(drawn: Any) -> None:
    columns = drawn("--lora_scale", "0", "--lora_scale", "1")
    assert list(columns) == ["base", "scale 0", "scale 1"]
    assert same(columns["scale 0"], columns["base"])
    assert same(columns["scale 1"], sampled("tuned"))


def test_several_runs(drawn: Any, folder: Path) -> None:
    shutil.copytree("run", "second")
    shutil.rmtree(folder / "second" / "checkpoints" / "000002")
    columns = drawn("second", "--seed", "2")
    assert list(columns) == ["base", "run", "second"]
    assert same(columns["run"], sampled("tuned", seed=2))
    assert same(columns["second"], sampled("1", seed=2))
