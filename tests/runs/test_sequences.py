"""Runs on the DNA world: every objective, kills, ranks, plan, evaluation, export, wrong input."""

import json
import subprocess
import sys
from pathlib import Path

import dna_runs
import helpers
import pytest
import torch
from helpers import call
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM

from ddpo.__main__ import main
from ddpo.models.masked.language import EMBEDDED
from ddpo.records import metrics

ON_STEPS = ["ddpo", "ddpo_sf", "grpo", "dpok", "prdp", "p3o", "d3po"]


@pytest.mark.parametrize("name", [*ON_STEPS, "drakes"])
def test_objectives_run_unchanged(name: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    extra = ["--objective.last_steps", "2"] if name == "drakes" else []
    argv = dna_runs.smoke(tmp_path / "run", "--objective", f"{{name: {name}}}", *extra)
    code, line = call(capsys, *argv, "--trainer.iterations", "1", "--trainer.minibatches", "1")
    assert code == 0, line
    (row,) = metrics.read(tmp_path / "run" / "metrics.jsonl")
    assert row["grad_norm"] > 0 and row["skipped_steps"] == 0
    assert {"guard/gc_content", "guard/longest_run", "guard/entropy", "guard/duplicates"} <= set(
        row
    )
    if name in ON_STEPS:
        assert row["ratio/max_dev"] <= 1e-6


DRIVER = """
import signal, sys
from ddpo.samplers import Masked
from ddpo.training import update
from tests.support.killing import process

MOMENTS = {"sampling": (Masked, "sample", 32), "updating": (update.Pass, "backward", 6)}


folder, argv = sys.argv[1], sys.argv[2:]
assert process([*argv, "--run_dir", f"{folder}/straight"]) == 0
for moment in MOMENTS:
    run = f"{folder}/{moment}"
    assert process([*argv, "--run_dir", run], MOMENTS[moment]) == -signal.SIGKILL, moment
    assert process(["--resume", run]) == 0, moment
"""


def test_killed_and_resumed_bit_for_bit(tmp_path: Path) -> None:
    driver = tmp_path / "driver.py"
    driver.write_text(DRIVER)
    argv = dna_runs.smoke(tmp_path / "unused")
    command = [sys.executable, str(driver), str(tmp_path), *argv]
    subprocess.run(command, env=helpers.one_thread(), check=True)
    last = {
        name: load_file(tmp_path / name / "checkpoints" / "000004" / "parameters.safetensors")
        for name in ("straight", "sampling", "updating")
    }
    for name in ("sampling", "updating"):
        assert all(last[name][key].equal(value) for key, value in last["straight"].items())
        rows = [metrics.read(tmp_path / each / "metrics.jsonl") for each in ("straight", name)]
        known, others = (
            [{k: v for k, v in row.items() if not k.startswith(("time/", "memory/", "images_per"))}
             for row in each] for each in rows
        )  # fmt: skip
        assert json.dumps(known) == json.dumps(others)


def test_two_ranks_equal_one(tmp_path: Path) -> None:
    argv = ["-m", "ddpo.train"]
    once = ["--trainer.iterations", "2", "--trainer.minibatches", "1"]
    subprocess.run(
        [sys.executable, *argv, *dna_runs.smoke(tmp_path / "one", *once)],
        env=helpers.one_thread(),
        check=True,
    )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    torchrun += ["--standalone"]
    subprocess.run(
        [*torchrun, *argv, *dna_runs.smoke(tmp_path / "two", *once)],
        env=helpers.one_thread(),
        check=True,
    )
    one, two = (metrics.read(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    assert one[0]["reward/mean"] == two[0]["reward/mean"], "the same sequences"
    assert one[0]["grad_norm"] == pytest.approx(two[0]["grad_norm"], rel=1e-5)
    guards = [key for key in one[0] if key.startswith("guard/")]
    assert [one[0][key] for key in guards] == pytest.approx([two[0][key] for key in guards])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("dna") / "run"
    argv = dna_runs.smoke(run, "--trainer.iterations", "2", "--trainer.lr", "0.05")
    argv += ["--log.images", "2", "--evaluation.samples_per_prompt", "6"]
    argv += ["--eval_rewards", "[{name: dna_judge}]"]
    assert main(["train", *argv]) == 0
    return run


def test_evaluation_of_sequences(trained: Path) -> None:
    assert main(["evaluate", str(trained)]) == 0
    folder = trained / "evaluation"
    text = (folder / "enhancer_tuned.fasta").read_text()
    assert text.count(">") == 6 and (folder / "sequences.png").exists()
    results = json.loads((folder / "results.json").read_text())["sets"]["enhancer"]
    assert {"dna_activity", "dna_judge", "gc_content", "duplicates"} <= set(results)
    assert "Histograms" in (trained / "index.html").read_text()
    assert "peft" in (trained / "README.md").read_text()


@pytest.mark.parametrize("file_format", ["peft", "merged"])
def test_exports_are_read_back(file_format: str, trained: Path, tmp_path: Path) -> None:
    argv = [str(trained), "--to", str(tmp_path / "out"), "--format", file_format]
    assert main(["export", *argv]) == 0
    if file_format == "merged":
        model = AutoModelForMaskedLM.from_pretrained(tmp_path / "out")
    else:
        plain = AutoModelForMaskedLM.from_pretrained(EMBEDDED)
        model = PeftModel.from_pretrained(plain, str(tmp_path / "out"))
    base = AutoModelForMaskedLM.from_pretrained(EMBEDDED)
    x = torch.full((1, 20), 4)
    with torch.no_grad():
        assert not torch.allclose(model(input_ids=x).logits, base(input_ids=x).logits)


def test_a_plan_counts_and_estimates(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    assert main(["plan", *dna_runs.smoke(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    assert "2 prompts x 4 samples (a group) = 8" in said and "peak on a CPU" in said


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (
            ["--sampler.guidance_scale", "5"],
            "sampler.guidance_scale: 5, but this model has no condition",
        ),
        (["--sampler", "{name: ddim, guidance_scale: 1.0}"], "sampler.name: ddim does not fit"),
        (["--objective", "{name: rwr}"], "objective.name: rwr works on denoising errors"),
        (["--objective", "{name: draft}"], "objective.name: draft differentiates steps of cont"),
        (["--rewards", "[{name: brightness}]"], "reward brightness scores images, and the model"),
        (["--model.alphabet", "protein"], "model.alphabet: the letter D of"),
        (["--model.length", "0"], "model.length: "),
        (["--lora.target_modules", "[to_q]"], "lora.target_modules: no layer is called 'to_q'"),
    ],
)
def test_wrong_input_is_one_line(
    flags: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    code, line = call(capsys, *dna_runs.smoke(tmp_path / "run", *flags))
    assert code == 2 and line.startswith(told), line
    assert not (tmp_path / "run").exists()


def test_scores_of_a_fasta_file(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "two.fasta").write_text(f">one\n{'ACGT' * 25}\n>two\n{'A' * 100}\n")
    assert main(["score", "--reward", "dna_activity", str(tmp_path / "two.fasta")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[1] for line in lines] == ["one", "two"]
    (tmp_path / "bad.fasta").write_text(">one\nACGX\n")
    assert main(["score", "--reward", "dna_activity", str(tmp_path / "bad.fasta")]) == 2
    assert "'X' in ACGX... is none of the letters ACGT" in capsys.readouterr().err
