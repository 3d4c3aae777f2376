"""The rule for over-optimization on written evaluations, and what a run does when it fires."""

import json
from pathlib import Path
from typing import Any

import helpers
import numpy as np
import pytest

from ddpo.__main__ import main
from ddpo.evaluation import overoptimization
from ddpo.evaluation.overoptimization import Names, alarm
from ddpo.records import checkpoint

NAMES = Names({"reward": 1.0}, ["judge"], ["edge_density"])


def row(iteration: int, reward: float, judge: float, edges: float = 0.2) -> dict[str, Any]:
    """Ten prompts of two samples, whose own levels are the same in every evaluation."""
    rng = np.random.default_rng(0)
    own, noise = rng.normal(size=10).repeat(2), np.random.default_rng(iteration).normal(size=20)
    scores = {
        "reward": (own + reward + 0.1 * noise).tolist(),
        "judge": (own + judge + 0.1 * noise).tolist(),
        "edge_density": [edges] * 20,
    }
    prompts = [f"prompt {i // 2}" for i in range(20)]
    return {"iteration": iteration, "prompts": prompts, "scores": scores}


def test_it_fires_when_a_judge_falls_twice_while_the_reward_rises() -> None:
    rows = [row(0, 0, 0), row(5, 1, 0), row(10, 2, -1)]
    assert alarm(rows, NAMES) is None, "once is not enough"
    found = alarm([*rows, row(15, 3, -1)], NAMES)
    assert found and (found.iteration, found.good) == (15, 5) and "judge" in found.reason


@pytest.mark.parametrize(
    "rows",
    [
        [row(0, 0, 0), row(5, 1, -1), row(10, 2, 0), row(15, 3, -1)],  # not in a row
        [row(0, 0, 0), row(5, -1, -1), row(10, -1, -1)],  # the reward fell, too
        [row(0, 0, 0), row(5, 1, 0), row(10, 2, 0.5)],  # the judge follows
        [row(0, 0, 0)],
    ],
)
def test_it_does_not_fire_without_a_reason(rows: list[dict[str, Any]]) -> None:
    assert alarm(rows, NAMES) is None


def test_a_guard_out_of_its_range_is_enough_once_where_there_is_no_judge() -> None:
    alone = Names({"reward": 1.0}, [], ["edge_density"])
    found = alarm([row(0, 0, 0), row(5, 1, 0), row(10, 2, 0, edges=0.7)], alone)
    assert found and found.good == 5 and found.reason == "edge_density went from 0.2 to 0.7"
    assert alarm([row(0, 0, 0), row(5, 1, 0, edges=0.5)], alone) is None


def test_a_guard_out_of_its_range_needs_a_judge_that_fell_where_there_is_one() -> None:
    """Compressibility aims at fewer edges: the captioner says whether the animals are lost."""
    start = [row(0, 0, 0), row(5, 1, 0)]
    assert alarm([*start, row(10, 2, 0, edges=0.02), row(15, 2, 0.5, edges=0.02)], NAMES) is None
    found = alarm([*start, row(10, 2, -1, edges=0.7)], NAMES)
    assert found and found.good == 5, "at once: two witnesses"
    assert "edge_density went from 0.2 to 0.7, and judge" in found.reason
    assert alarm([*start, row(10, -2, -1, edges=0.7)], NAMES), "a collapse loses the reward, too"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two iterations, evaluated before and after each."""
    folder = tmp_path_factory.mktemp("panel") / "run"
    flags = ["--evaluation.every", "1", "--evaluation.num_prompts", "2", "--checkpoint.every", "1"]
    flags += ["--trainer.iterations", "4", "--checkpoint.keep", "{last: 1, spaced: 2}"]
    flags += [
        "--eval_rewards",
        "[{name: brightness, label: light}]",
        "--evaluation.best",
        "trained",
    ]
    assert main(["train", *helpers.smoke(folder, *flags)]) == 0
    return folder


def test_a_run_keeps_every_evaluation_from_iteration_0_on(trained: Path) -> None:
    rows = helpers.metrics.read(trained / "evaluations.jsonl")
    assert [each["iteration"] for each in rows] == [0, 1, 2, 3, 4]
    assert all(len(each["scores"]["light"]) == 2 for each in rows)
    assert "kl" not in rows[0]["means"] and rows[-1]["means"]["kl"] > 0
    means = [each["means"]["jpeg_compressibility"] for each in rows]
    best = 1 + int(np.argmax(means[1:]))
    state = json.loads((trained / "checkpoints/000004/state.json").read_text())
    assert state["best"]["iteration"] == best
    assert checkpoint.find(trained, "best").name == f"{best:06d}"
    # spaced: of 4 iterations the multiples of 2; the newest, and the best
    assert helpers.saved(trained) == sorted({"000002", "000004", f"{best:06d}"})
    assert "evaluation.best: trained" in (trained / "README.md").read_text()


def test_what_is_kept_later_was_kept_before(tmp_path: Path) -> None:
    for iteration in range(5, 205, 5):
        (tmp_path / "checkpoints" / f"{iteration:06d}").mkdir(parents=True)
        checkpoint.keep(tmp_path, 2, best=65, spaced=4, every=5)
    # 200 / 4 = 50, so the stride is 5 * 16 = 80
    kept = [int(path.name) for path in checkpoint.all_of(tmp_path)]
    assert kept == [65, 80, 160, 195, 200]


def test_a_run_stops_or_rolls_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        overoptimization,
        "sign",
        lambda first, row, names: ("sharp", True) if row["iteration"] > 1 else ("", False),
    )
    flags = ["--evaluation.every", "1", "--evaluation.num_prompts", "2", "--checkpoint.every", "1"]
    for action, left, words in (
        ("stop", ["000001", "000002"], "(state saved; go on with --resume"),
        ("rollback", ["000001"], "sharp; rolled back to checkpoint 000001 ("),
    ):
        argv = helpers.smoke(tmp_path / action, *flags, "--evaluation.on_over_optimization", action)
        code, line = helpers.call(capsys, *argv)
        assert code == 3 and words in line, line
        assert line.startswith("over-optimization at iteration 2: sharp")
        assert helpers.saved(tmp_path / action) == left
        assert helpers.done(tmp_path / action) == [int(name) for name in left]
    assert (tmp_path / "rollback" / "lora").is_dir()
