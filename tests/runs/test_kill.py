"""SIGKILL at any moment, then --resume: the run that was never killed, bit for bit."""

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import families
import helpers
import pytest
from safetensors.torch import load_file

DRIVER = """
import os
import signal
import sys

from ddpo.records import checkpoint, metrics
from ddpo.runs import session
from ddpo.samplers import Gaussian
from ddpo.training import update
from tests.support.killing import process

MOMENTS = {  # owner, function, and the call of it that never returns
    "before": (metrics, "write", 2),
    "writing": (checkpoint, "save_file", 5),
    "sampling": (Gaussian, "sample", 8),
    "updating": (update.Pass, "backward", 14),
    "after": (session.Session, "finish", 1),
}


def snapshot(run):
    os.system(f"cp -r {run} {run}.killed")


folder, moments, argv = sys.argv[1], sys.argv[2].split(","), sys.argv[3:]
assert process([*argv, "--run_dir", f"{folder}/straight"]) == 0
for moment in moments:
    run = f"{folder}/{moment}"
    assert process([*argv, "--run_dir", run], MOMENTS[moment]) == -signal.SIGKILL, moment
    snapshot(run)
    assert process(["--resume", run]) == 0, moment
"""

LEFT = {
    "before": (1, [], False),
    "writing": (4, ["000002"], True),
    "sampling": (2, ["000002"], False),
    "updating": (3, ["000002"], False),
    "after": (4, ["000002", "000004"], False),
}
"""What the kill left of four iterations with a checkpoint every two: lines, checkpoints, one
half-written."""


def killed(folder: Path, moments: Iterable[str], *flags: str) -> Path:
    """Runs of four iterations, killed and resumed: each is forked from one process that has done
    the imports.

    All that has a memory is switched on.
    """
    (folder / "driver.py").write_text(DRIVER)
    (folder / "four.txt").write_text("a fox\na cat\nan owl\na bee\n")
    argv = helpers.smoke(
        folder,
        "--prompts.path",
        str(folder / "four.txt"),
        "--trainer.iterations",
        "4",
        "--trainer.minibatches",
        "2",
        "--trainer.epochs",
        "2",
        "--trainer.lr_schedule",
        "cosine",
        "--advantage.name",
        "per_prompt",
        "--advantage.min_count",
        "2",
        "--ema.decay",
        "0.6",
        "--checkpoint.every",
        "2",
        "--evaluation.prompts",
        "null",
        *flags,
    )
    done = subprocess.run(
        [sys.executable, str(folder / "driver.py"), str(folder), ",".join(moments), *argv],
        env=helpers.one_thread(),
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return killed(tmp_path_factory.mktemp("runs"), LEFT)


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").glob("*"))


def rows(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        {
            key: v
            for key, v in row.items()
            if not key.startswith(("time/", "images_per_s", "memory/"))
        }
        for row in lines
    ]


@pytest.mark.parametrize("moment", LEFT)
def test_a_killed_run_resumes_bit_for_bit(runs: Path, moment: str) -> None:
    straight, killed, resumed = runs / "straight", runs / f"{moment}.killed", runs / moment
    lines, checkpoints, half = LEFT[moment]
    before = (killed / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    assert len(before) == lines
    kept = [name for name in names(killed) if not name.startswith(".")]
    assert kept == checkpoints and (names(killed) != kept) == half
    assert not (killed / "lora").exists()
    after = (resumed / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    reached = int(checkpoints[-1]) if checkpoints else 0
    assert after[:reached] == before[:reached], (
        "with their seconds: these iterations were not done again"
    )
    assert rows(resumed) == rows(straight) and len(after) == 4
    assert names(resumed) == names(straight) == ["000002", "000004"]
    for file in (
        "lora/pytorch_lora_weights",
        *(f"checkpoints/000004/{p}" for p in ("parameters", "ema")),
    ):
        one, other = (load_file(run / f"{file}.safetensors") for run in (resumed, straight))
        assert one.keys() == other.keys() and all((one[key] == other[key]).all() for key in one), (
            file
        )
        assert any(value.any() for key, value in one.items() if "lora_B" in key)
    states = [
        (run / "checkpoints" / "000004" / "state.json").read_text() for run in (resumed, straight)
    ]
    assert states[0] == states[1], (
        "schedule, statistics, steps of the average, sha256 of every tensor"
    )
    assert not list(resumed.rglob("*.writing*"))


def test_a_flow_model_with_its_text_encoders_resumes_bit_for_bit(tmp_path: Path) -> None:
    """Stable Diffusion 3, killed amid an update."""
    folder = killed(
        tmp_path,
        ["updating"],
        *("--model.pretrained", families.saved("sd3", tmp_path / "base")),
        *("--model.max_sequence_length", "8", "--lora.text_encoder", "true"),
        *("--sampler.name", "flow_sde"),
    )
    straight, resumed = folder / "straight", folder / "updating"
    assert rows(resumed) == rows(straight)
    for file in ("lora/pytorch_lora_weights", "checkpoints/000004/parameters"):
        one, other = (load_file(run / f"{file}.safetensors") for run in (resumed, straight))
        assert one.keys() == other.keys() and all((one[key] == other[key]).all() for key in one)
        kinds = {key.split(".")[0] for key in one}
        assert kinds == {"transformer", "text_encoder", "text_encoder_2"}
