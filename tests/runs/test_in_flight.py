"""A fault during a run costs one line and exit code 3; continued, the run is the one without the
fault."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import helpers
import pytest
import torch
from helpers import call, done, saved
from safetensors.torch import load_file

from ddpo import plugins
from ddpo.__main__ import main
from ddpo.records import checkpoint, metrics
from ddpo.runs.finished import Run
from ddpo.training.trainer import Trainer

REWARDS = """
import time

import torch

calls = {}


def second(name):
    calls[name] = calls.get(name, 0) + 1
    return calls[name] == 2


def raises(images, prompts, metadata):
    if second("raises"):
        torch.zeros(2) + torch.zeros(3)
    return images.mean((1, 2, 3))


def matrix(images, prompts, metadata):
    return images if second("matrix") else images.mean((1, 2, 3))


def text(images, prompts, metadata):
    return "good" if second("text") else images.mean((1, 2, 3))


def nothing(images, prompts, metadata):
    return None if second("nothing") else images.mean((1, 2, 3))


def blind(images, prompts, metadata):
    return images.mean((1, 2, 3)) * (torch.nan if second("blind") else 1)


def hangs(images, prompts, metadata):
    if second("hangs"):
        time.sleep(1000)
    return images.mean((1, 2, 3))


def constant(images, prompts, metadata):
    return torch.ones(len(images))


def partly(images, prompts, metadata):
    values = images.mean((1, 2, 3))
    values[:3] = torch.nan
    return values


def fading(images, prompts, metadata):
    second("fading")
    return images.mean((1, 2, 3)) - calls["fading"]


def judge(images, prompts, metadata):
    if second("judge"):
        raise ConnectionError("no answer")
    return images.mean((1, 2, 3))
"""

OBJECTIVES = {
    "wrong": "def wrong(logp, batch):\n    return batch.rewards.mean()\n",
    "rows": "def rows(logp, batch):\n    return logp.mean(1)\n",
    "later": (
        "calls = []\n"
        "\n"
        "def later(logp, batch):\n"
        "    calls.append(1)\n"
        "    assert len(calls) != 4, 'no'\n"
        "    return (-batch.advantage[:, None] * logp).mean()\n"
    ),
    "broken": "def broken(logp, batch):\n    return logp.mean() * float('nan')\n",
}


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plugin folder of things that break."""
    folder = tmp_path_factory.mktemp("mine")
    (folder / "objectives").mkdir()
    (folder / "bad.py").write_text(REWARDS)
    for name, text in OBJECTIVES.items():
        (folder / "objectives" / f"{name}.py").write_text(text)
    return folder


def reward(mine: Path, name: str) -> list[str]:
    return ["--rewards", f"[{{name: '{mine / 'bad.py'}:{name}'}}]", "--checkpoint.every", "1"]


IN_REWARD = {
    "raises": (
        "reward raises raised RuntimeError: The size of tensor a (2) must match the size of "
        "tensor b (3) at non-singleton dimension 0 (@/bad.py, line 16)"
    ),
    "matrix": "reward matrix returned shape (8, 3, 16, 16) for 8 images; return one number each",
    "text": "reward text returned str 'good'; return a tensor of 8 numbers, one per image",
    "nothing": "reward nothing returned NoneType None; return a tensor of 8 numbers, one per image",
    "blind": (
        "rewards: 8 of 8 images got no value, above trainer.max_missing 0.5 (NaN from blind for 8)"
    ),
    "hangs": "rewards: hangs gave no values within 0.3 s (trainer.reward_timeout_s)",
}


@pytest.mark.parametrize("name", IN_REWARD)
def test_a_reward_fails(
    name: str, mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At the second iteration: the first is kept, and the run goes on from there."""
    run = tmp_path / "run"
    timeout = ["--trainer.reward_timeout_s", "0.3"] if name == "hangs" else []
    code, line = call(capsys, *helpers.smoke(run), *reward(mine, name), *timeout)
    words = IN_REWARD[name].replace("@", str(mine))
    assert (code, line) == (3, f"{words} (state saved; go on with --resume {run})")
    assert saved(run) == ["000001"] and done(run) == [1] and not (run / "lora").exists()
    if name in ("raises", "hangs"):
        assert call(capsys, "--resume", str(run)) == (0, "") and done(run) == [1, 2, 3]


def test_a_reward_that_hangs_does_not_keep_the_process(mine: Path, tmp_path: Path) -> None:
    argv = [
        *helpers.smoke(tmp_path / "run"),
        *reward(mine, "hangs"),
        "--trainer.reward_timeout_s",
        "0.3",
    ]
    started = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-m", "ddpo", "train", *argv],
        env=helpers.one_thread(),
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert ended.returncode == 3 and "gave no values within 0.3 s" in ended.stderr.splitlines()[-1]
    assert time.monotonic() - started < 200, "the reward sleeps for 1000 s"


def test_a_judge_fails_after_the_iteration(
    mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The iteration before it counts: its line is written and its weights are saved.

    It fails the second time that it is asked; the first time was before the training.
    """
    run, flags = tmp_path / "run", ["--eval_rewards", f"[{{name: '{mine / 'bad.py'}:judge'}}]"]
    few = ["--evaluation.every", "1", "--evaluation.num_prompts", "1", "--checkpoint.every", "9"]
    code, line = call(capsys, *helpers.smoke(run), *flags, *few)
    assert code == 3 and line.startswith("reward judge raised ConnectionError: no answer (")
    assert saved(run)[-1] == "000001" and done(run) == [1]
    assert call(capsys, "--resume", str(run)) == (0, "") and done(run) == [1, 2, 3]


def test_what_is_no_fault(mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Groups whose rewards are equal teach nothing, and some images may have no reward."""
    for name, missing in (("constant", 0), ("partly", 3)):
        flags = [*reward(mine, name), "--trainer.minibatches", "1", "--trainer.iterations", "1"]
        assert call(capsys, *helpers.smoke(tmp_path / name), *flags) == (0, "")
        (row,) = metrics.read(tmp_path / name / "metrics.jsonl")
        assert row["reward/missing"] == missing and row["skipped_steps"] == 0
        assert None not in row.values() and (row["grad_norm"] == 0) == (name == "constant")


IN_OBJECTIVE = {
    "wrong": (
        "objective wrong raised AttributeError: 'Batch' object has no attribute 'rewards' "
        "(@/objectives/wrong.py, line 2) (state saved; go on with --resume RUN)",
        ["000000"],
    ),
    "rows": (
        (
            "objective rows returned shape (4,); return one number, as with .mean() (state saved; "
            "go on with --resume RUN)"
        ),
        ["000000"],
    ),
    "later": (
        (
            "objective later raised AssertionError: no (@/objectives/later.py, "
            "line 5) (the weights had begun to move; --resume RUN goes on from iteration 1)"
        ),
        ["000001"],
    ),
    "broken": (
        "no finite loss or gradient in 3 iterations; lower trainer.lr or look at the reward (state "
        "saved; go on with --resume RUN)",
        ["000001", "000002"],
    ),
}


@pytest.mark.parametrize("name", IN_OBJECTIVE)
def test_an_objective_fails(
    name: str,
    mine: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`later` breaks at the second of two minibatches: what the first has done to the weights is
    not kept."""
    monkeypatch.setenv(plugins.VARIABLE, "")
    run, (words, kept) = tmp_path / "run", IN_OBJECTIVE[name]
    flags = ["--plugins", f"[{mine}]", "--objective.name", name, "--checkpoint.every", "1"]
    code, line = call(capsys, *helpers.smoke(run), *flags)
    assert (code, line) == (3, words.replace("@", str(mine)).replace("RUN", str(run)))
    assert saved(run) == kept


def test_signals(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One saves after the iteration; a second stops at once."""
    gate = Trainer.gate
    for number in (1, 2):
        run = tmp_path / str(number)

        def signalled(trainer: Trainer, work: Any, number: int = number) -> None:
            for _ in range(number):
                os.kill(os.getpid(), signal.SIGINT)
            gate(trainer, work)

        monkeypatch.setattr(Trainer, "gate", signalled)
        code, line = call(capsys, *helpers.smoke(run))
        once = f"stopped after iteration 1; go on with --resume {run}"
        twice = "interrupted; a training run goes on with `ddpo train --resume RUN_DIR`"
        assert (code, line) == (3, once if number == 1 else twice)
        assert (saved(run), done(run)) == ((["000001"], [1]) if number == 1 else ([], []))


def test_the_best_checkpoint_stays(
    mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The reward falls with each call, so the first evaluation is the best; it makes its own
    checkpoint."""
    run = tmp_path / "run"
    flags = [
        "--evaluation.every",
        "1",
        "--evaluation.num_prompts",
        "1",
        "--checkpoint.keep_last",
        "1",
    ]
    argv = [*helpers.smoke(run), *reward(mine, "fading"), *flags, "--checkpoint.every", "9"]
    assert call(capsys, *argv, "--trainer.iterations", "2") == (0, "")
    assert call(capsys, "--resume", str(run), "--trainer.iterations", "3") == (0, "")
    means = [row["eval/fading"] for row in metrics.read(run / "metrics.jsonl")]
    assert means == sorted(means, reverse=True) and saved(run) == ["000001", "000003"]
    state = checkpoint.load(run / "checkpoints" / "000003")[1]
    assert state["best"] == {"iteration": 1, "mean": means[0]}
    chosen = Run(run)
    first = load_file(run / "checkpoints" / "000001" / "parameters.safetensors")
    with chosen.policy.weights(chosen.remember("best")):
        assert all(
            torch.equal(value, first[key]) for key, value in chosen.policy.parameters().items()
        )
    assert (
        main(["sample", str(run), "--prompt", "a fox", "--count", "1", "--checkpoint", "best"]) == 0
    )
    assert (run / "sample.png").is_file()
    capsys.readouterr()
    assert main(["sample", str(run), "--prompt", "a fox", "--checkpoint", "000002"]) == 2
    words = f"ddpo: {run} has no checkpoint 000002; there are: 000001, 000003"
    assert capsys.readouterr().err.splitlines() == [words]
