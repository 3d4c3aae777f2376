"""`ddpo train` from its command line to its folder: what is written, refused, stopped and
continued."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import helpers
import numpy as np
import pytest
import torch
import yaml
from diffusers import DDIMScheduler
from PIL import Image
from safetensors.torch import load_file

import ddpo
from ddpo import config, train
from ddpo.building import build
from ddpo.commands import frame
from ddpo.images import from_pil, to_pil
from ddpo.media import MEDIA
from ddpo.models._shared.exports import lora_weights
from ddpo.parallel.seeds import Purpose, generator
from ddpo.records import checkpoint
from ddpo.records.metrics import METRICS
from ddpo.rollout.sample import sample
from ddpo.runs import judge
from ddpo.runs.finished import Run

VARYING = ("time/", "images_per_s", "memory/")


def call(*argv: str) -> int:
    return frame.run(train.main, argv)


def rows(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in line.items() if not key.startswith(VARYING)} for line in lines
    ]


def apart(some: list[Image.Image], others: list[Image.Image]) -> int:
    """The largest difference of two pixels, in bytes."""
    pairs = zip(some, others, strict=True)
    return max(int(np.abs(np.asarray(one, int) - np.asarray(two, int)).max()) for one, two in pairs)


@torch.no_grad()
def pictures(run: Run, texts: list[str], seeds: Sequence[int], weights: str) -> list[Image.Image]:
    """By weights of `policy.weights`."""
    keys, prompts = [(Purpose.EVALUATION, seed) for seed in seeds], helpers.as_prompts(texts)
    with run.policy.weights(weights):
        parts = list(sample(run.policy, run.sampler, prompts, keys))
    return [image for part in parts for image in to_pil(part.images)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smoke run on the tiny model: three iterations; pictures and an evaluation on the way."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    argv = helpers.smoke(
        folder, "--log.images", "2", "--evaluation.every", "3", "--evaluation.num_prompts", "2"
    )
    assert call(*argv, "--trainer.lr", "1e-2") == 0
    return folder


def test_what_a_run_leaves(finished: Path) -> None:
    assert {path.name for path in finished.iterdir()} == {
        "config.yaml",
        "provenance.json",
        "metrics.jsonl",
        "evaluations.jsonl",
        "samples",
        "checkpoints",
        "lora",
        "README.md",
    }
    found = rows(finished)
    assert [row["iteration"] for row in found] == [1, 2, 3] and found[-1]["images_seen"] == 24
    spelled = {f"eval/{guard}": "eval/<name>" for guard in MEDIA["images"].guards}
    assert {
        spelled.get(key, key.replace("jpeg_compressibility", "<name>"))
        for row in found
        for key in row
    } <= METRICS.keys()
    assert "eval/jpeg_compressibility" in found[-1] and "eval/jpeg_compressibility" not in found[0]
    assert sorted(path.name for path in (finished / "checkpoints").iterdir()) == [
        "000002",
        "000003",
    ]
    pictures = {
        str(path.relative_to(finished / "samples"))
        for path in (finished / "samples").rglob("*.png")
    }
    assert pictures == {
        name for i in ("000000", "000002") for name in (f"{i}.png", f"{i}/00.png", f"{i}/01.png")
    }
    provenance = json.loads((finished / "provenance.json").read_text())
    assert provenance["num_processes"] == 1 and provenance["rewards"].keys() == {
        "jpeg_compressibility"
    }
    assert len(provenance["prompt_set_sha256"]) == 64
    card = (finished / "README.md").read_text()
    assert "jpeg_compressibility" in card and "load_lora_weights" in card


def test_its_configuration_gives_the_same_run(finished: Path, tmp_path: Path) -> None:
    assert config.load(finished / "config.yaml") == config.load(
        yaml.safe_load((finished / "config.yaml").read_text())
    )
    again = tmp_path / "again"
    assert call("--config", str(finished / "config.yaml"), "--run_dir", str(again)) == 0
    assert rows(again) == rows(finished)


def test_a_finished_run_says_so(finished: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = {path: path.stat().st_mtime_ns for path in (finished / "lora").iterdir()}
    metrics = (finished / "metrics.jsonl").read_bytes()
    assert call("--resume", str(finished)) == 0
    assert "has finished its 3 iterations" in caplog.text
    assert before == {path: path.stat().st_mtime_ns for path in (finished / "lora").iterdir()}
    assert (finished / "metrics.jsonl").read_bytes() == metrics


def test_its_lora_gives_our_pictures_in_plain_diffusers(finished: Path) -> None:
    """By the pipeline's own __call__, from generators with our keys; the base model's are
    others."""
    prompts, seeds = ["a fox", "an owl", "a fox"], [0, 1, 2]
    run = ddpo.load(finished)
    tuned, base = run.sample(prompts, seeds), run.sample(prompts, seeds, "base")
    pipeline = helpers.plain_pipeline()
    arguments: dict[str, Any] = {
        "num_inference_steps": 3,
        "guidance_scale": run.sampler.guidance_scale,
        "eta": 1.0,
    }
    for ours, lora in ((base, None), (tuned, finished / "lora")):
        if lora:
            pipeline.load_lora_weights(str(lora))
        keys = [generator(Purpose.EVALUATION, seed) for seed in seeds]
        assert apart(ours, pipeline(prompts, generator=keys, **arguments).images) <= 1
    assert apart(tuned, base) > 3


def test_an_evaluation_compares_at_matched_seeds(finished: Path, tmp_path: Path) -> None:
    """Before training differs from after by the pairs' mean difference, recomputed from
    samples.jsonl."""
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    settings = config.parse(["--config", str(folder / "config.yaml"), "--run_dir", str(folder)])
    results = judge.judge(settings)
    assert (
        json.loads((folder / "evaluation" / "results.json").read_text())["sets"] == results["sets"]
    )
    shots = [
        json.loads(line)
        for line in (folder / "evaluation" / "samples.jsonl").read_text().splitlines()
    ]
    assert (
        results["sets"].keys() == {"animals", "animals_heldout"} == {shot["set"] for shot in shots}
    )
    for name, scores in results["sets"].items():
        columns = {
            column: {
                (s["prompt"], s["seed"]): s["scores"]["jpeg_compressibility"]
                for s in shots
                if (s["set"], s["column"]) == (name, column)
            }
            for column in ("base", "tuned")
        }
        assert columns["base"].keys() == columns["tuned"].keys() and len(columns["base"]) == 2
        expected = np.mean(
            [columns["tuned"][key] - columns["base"][key] for key in columns["base"]]
        )
        assert scores["jpeg_compressibility"]["difference"]["mean"] == pytest.approx(expected)
    run = ddpo.load(folder)
    for column in ("base", "tuned"):
        shown = [shot for shot in shots if shot["column"] == column]
        texts, seeds = [shot["prompt"] for shot in shown], [shot["seed"] for shot in shown]
        pictures = [Image.open(folder / "evaluation" / shot["image"]) for shot in shown]
        assert apart(pictures, run.sample(texts, seeds, column)) <= 1, (
            f"{column} is another model's"
        )
        other = "tuned" if column == "base" else "base"
        assert apart(pictures, run.sample(texts, seeds, other)) > 3
    assert (folder / "index.html").is_file() and "| animals_heldout |" in (
        folder / "README.md"
    ).read_text()


def test_held_out_prompts_go_through_the_template(tmp_path: Path) -> None:
    template = "A painting of a {animal}"
    settings = helpers.settings(
        tmp_path, prompts__template=template, evaluation__prompts="animals_heldout"
    )
    seen, held_out = build.evaluation_sets(settings)
    assert (seen.name, held_out.name) == ("animals", "animals_heldout") and len(held_out) > 5
    for prompt in [*seen, *held_out]:
        assert prompt.text == f"A painting of a {prompt.metadata['animal']}"


def test_everything_shown_and_judged_is_the_average(tmp_path: Path) -> None:
    """With an EMA: the means on the way, the best, the pictures and lora/ are not of the raw
    weights."""
    folder = tmp_path / "run"
    reward = helpers.reward_file(tmp_path / "rewards")
    flags = ["--ema.decay", "0.9", "--rewards", f"[{{name: '{reward}'}}]", "--trainer.lr", "1.0"]
    flags += ["--evaluation.every", "1", "--evaluation.num_prompts", "4", "--log.images", "2"]
    assert call(*helpers.smoke(folder, *flags, "--checkpoint.every", "1", "--log.every", "3")) == 0
    run = ddpo.load(folder)
    held_out = [prompt.text for prompt in build.evaluation_sets(run.config)[-1]]

    def judged(column: str) -> float:
        shots = pictures(run, held_out, range(4), run.remember(column))
        return helpers.redness(from_pil(shots), [], []).mean().item()

    told = {row["iteration"]: row["eval/redness"] for row in rows(folder)}
    for name in ("000002", "000003"):
        assert judged(name) == pytest.approx(told[int(name)], abs=2e-4)
    tensors, state = checkpoint.load(run.checkpoints["000003"])
    assert state["best"] == {
        "iteration": max(told, key=lambda i: told[i]),
        "mean": max(told.values()),
    }
    seen = [prompt.text for prompt in build.evaluation_sets(run.config)[0]][::2]
    average = pictures(run, seen, [0, 2], run.remember("000003"))
    shown = [Image.open(folder / "samples" / "000003" / f"{i:02d}.png") for i in range(2)]
    assert apart(shown, average) <= 1
    lora = load_file(folder / "lora" / "pytorch_lora_weights.safetensors")
    with run.policy.weights("000003"):
        expected = lora_weights(run.policy._adapted)["unet"]
    for key, value in expected.items():
        torch.testing.assert_close(lora[f"unet.{key}"], value)
    run.policy.snapshots["000003"] = tensors["parameters"]
    assert (
        apart(shown, pictures(run, seen, [0, 2], "000003")) > 3
        and abs(judged("000003") - told[3]) > 6e-4
    )


def tree(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def clipping(folder: Path) -> str:
    """The tiny pipeline with a scheduler that clips (of clip_sample diffusers' own pipeline
    disposes)."""
    shutil.copytree(helpers.pipeline_folder(), folder)
    scheduler = DDIMScheduler.from_pretrained(folder / "scheduler")
    DDIMScheduler.from_config(scheduler.config, thresholding=True).save_pretrained(
        folder / "scheduler"
    )
    return str(folder)


MISTAKES = {
    "reward": (
        ["--rewards", "[{name: jpeg_compresibility}]"],
        "did you mean jpeg_compressibility?",
    ),
    "no reward": (["--rewards", "[]"], "rewards: needs at least one"),
    "prompts": (["--prompts.name", "animas"], "did you mean animals?"),
    "prompt file": (["--prompts.path", "nowhere.txt"], "prompts.path: nowhere.txt: no such file"),
    "held-out prompts": (["--evaluation.prompts", "nowhere"], "nothing is called 'nowhere'"),
    "key": (["--trainer.minibatch", "2"], "trainer.minibatch: no such option"),
    "objective": (["--objective.name", "ddpoo"], "did you mean ddpo"),
    "objective option": (["--objective.clip_rage", "1"], "did you mean clip_range?"),
    "model": (
        ["--model.pretrained", "nowhere/at/all"],
        "model.pretrained: 'nowhere/at/all' is no folder",
    ),
    "eta 0": (["--sampler.eta", "0"], "sampler.eta: 0"),
    "eta": (["--sampler.eta", "1.5"], "sampler.eta: must be at least 0 and at most 1, got 1.5"),
    "steps": (["--sampler.num_steps", "2000"], "sampler.num_steps: 2000 is not between 1 and"),
    "minibatches": (["--trainer.minibatches", "3"], "trainer.minibatches: 3 does not divide"),
    "lora": (["--model.loras", "[nowhere/at/all]"], "model.loras: 'nowhere/at/all'"),
    "reward option": (
        ["--rewards", "[{name: jpeg_compressibility, params: {qualty: 1}}]"],
        "params.qualty",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_cost_one_line_and_leave_nothing(
    mistake: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    argv, words = MISTAKES[mistake]
    assert call(*helpers.smoke(tmp_path / "run"), *argv) == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1 and words in error[0], error
    assert list(tmp_path.iterdir()) == []


def test_a_clipping_scheduler_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = clipping(tmp_path / "model")
    assert call(*helpers.smoke(tmp_path / "run"), "--model.pretrained", model) == 2
    assert "clip_sample" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_a_folder_that_holds_a_run_is_refused(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in tree(finished)}
    assert call(*helpers.smoke(finished)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "already holds a run" in line and "--resume" in line and "--overwrite" in line
    assert {path: path.read_bytes() for path in tree(finished)} == before


def test_a_changed_option_is_refused_by_name(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in tree(finished)}
    for flag, value in (
        ("--trainer.lr", "1"),
        ("--seed", "1"),
        ("--objective.clip_range", "1e-2"),
        ("--lora.rank", "2"),
    ):
        assert call("--resume", str(finished), flag, value) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert flag.removeprefix("--") in line
    assert {path: path.read_bytes() for path in tree(finished)} == before


def test_resume_of_what_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--resume", str(tmp_path / "nowhere")) == 2
    assert call("--resume") == 2
    assert call("--resume", str(tmp_path), "--overwrite") == 2
    assert len(capsys.readouterr().err.splitlines()) == 3 and list(tmp_path.iterdir()) == []


def test_resume_auto_starts_goes_on_and_more_iterations_go_further(tmp_path: Path) -> None:
    run, straight = tmp_path / "run", tmp_path / "straight"
    argv = [*helpers.smoke(run), "--resume", "auto", "--trainer.iterations"]
    assert call(*argv, "1") == 0 and [row["iteration"] for row in rows(run)] == [1]
    assert call(*argv, "2") == 0 and [row["iteration"] for row in rows(run)] == [1, 2]
    assert call("--resume", str(run), "--trainer.iterations", "3", "--checkpoint.every", "7") == 0
    assert call(*helpers.smoke(straight)) == 0
    assert rows(run) == rows(straight)
    assert config.load(run / "config.yaml").trainer.iterations == 3


def test_overwrite_replaces_the_run_and_keeps_what_is_not_ours(
    finished: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    (run / "notes.txt").write_text("mine")
    (run / "evaluation").mkdir()
    (run / "evaluation" / "results.json").write_text("{}")
    assert call(*helpers.smoke(run), "--overwrite", "--trainer.iterations", "1") == 0
    assert (run / "notes.txt").read_text() == "mine" and not (run / "evaluation").exists()
    assert len(rows(run)) == 1 and [path.name for path in (run / "checkpoints").iterdir()] == [
        "000001"
    ]


def test_a_reward_of_the_wrong_shape_is_told_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "flat.py").write_text(
        "def flat(images, prompts, metadata):\n    return images.mean()\n"
    )
    flags = ["--rewards", f"[{{name: '{tmp_path / 'flat.py'}:flat'}}]"]
    # it shows in flight: what was reached is saved
    assert call(*helpers.smoke(tmp_path / "run"), *flags) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "ddpo: reward flat returned shape () for 8 images; return one number each (state saved;"
    )


def test_a_stop_inside_an_iteration_saves_and_says_how_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No reward has a value: exit code 3, a checkpoint, signal handlers as before."""
    (tmp_path / "none.py").write_text(
        "def none(images, prompts, metadata):\n    return images.mean((1, 2, 3)) * float('nan')\n"
    )
    run, before = tmp_path / "run", signal.getsignal(signal.SIGTERM)
    assert call(*helpers.smoke(run), "--rewards", f"[{{name: '{tmp_path / 'none.py'}:none'}}]") == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert "8 of 8 images got no value" in line and f"--resume {run}" in line
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["000000"] and not (
        run / "lora"
    ).exists()
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_whole_denoiser_can_be_trained(tmp_path: Path) -> None:
    argv = [*helpers.smoke(tmp_path / "run")]
    at = argv.index("--lora.rank")
    del argv[at : at + 2]
    assert call(*argv, "--lora", "null", "--trainer.iterations", "1", "--model.dtype", "bf16") == 0
    assert (tmp_path / "run" / "lora" / "unet" / "diffusion_pytorch_model.safetensors").is_file()


def test_sigterm_saves_and_the_run_goes_on(tmp_path: Path) -> None:
    """As a process: exit code 3 and how to go on; continued, it is the run without the signal."""
    run, straight = tmp_path / "run", tmp_path / "straight"
    argv = [*helpers.smoke(run), "--advantage.name", "per_prompt", "--checkpoint.every", "1000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "ddpo.train", *argv, "--trainer.iterations", "1000"],
        env=helpers.one_thread(),
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    deadline = time.monotonic() + 500
    while time.monotonic() < deadline and process.poll() is None:
        if (run / "metrics.jsonl").exists() and len(
            (run / "metrics.jsonl").read_bytes().splitlines()
        ) >= 2:
            process.send_signal(signal.SIGTERM)
            break
        time.sleep(0.05)
    _, error = process.communicate(timeout=500)
    assert process.returncode == 3, error
    last = error.splitlines()[-1]
    done = len(rows(run))
    assert (
        last == f"ddpo: stopped after iteration {done}; go on with --resume {run}"
        and "Traceback" not in error
    )
    assert [path.name for path in (run / "checkpoints").iterdir()] == [f"{done:06d}"]
    total = str(done + 1)
    assert call("--resume", str(run), "--trainer.iterations", total) == 0
    argv[argv.index(str(run))] = str(straight)
    assert call(*argv, "--trainer.iterations", total) == 0
    assert rows(run) == rows(straight)
    one, other = (
        load_file(each / "lora" / "pytorch_lora_weights.safetensors") for each in (run, straight)
    )
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_a_mistake_as_a_process(tmp_path: Path) -> None:
    """Nothing but the line: no warning of an import, no traceback."""
    argv = [*helpers.smoke(tmp_path / "run"), "--rewards", "[{name: nowhere}]"]
    done = subprocess.run(
        [sys.executable, "-m", "ddpo", "train", *argv],
        env=helpers.one_thread(),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=500,
    )
    assert done.returncode == 2 and done.stdout == ""
    assert (
        len(done.stderr.splitlines()) == 1
        and done.stderr.startswith("ddpo: ")
        and "nowhere" in done.stderr
    )
    assert os.listdir(tmp_path) == []
