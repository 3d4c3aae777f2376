"""Stop and resume is the same run, bit for bit; a checkpoint is whole or not there."""

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import helpers
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ddpo.errors import Stopped
from ddpo.records import checkpoint
from ddpo.runs.finished import Run
from ddpo.runs.session import Session

VARYING = ("time/", "images_per_s", "memory/")
"""What is not promised to be equal."""

FULL = {
    "advantage__name": "per_prompt",
    "advantage__options": {"min_count": 2, "buffer_size": 3},
    "ema__decay": 0.6,
    "trainer__lr_schedule": "cosine",
    "trainer__minibatches": 2,
    "trainer__epochs": 2,
    "prompts__path": None,
    "checkpoint__every": 1,
    "checkpoint__keep_last": 9,
}
"""Everything that has a memory: statistics, moments, an average, a schedule."""


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Four prompts, so that each comes again in every iteration."""
    file = tmp_path_factory.mktemp("prompts") / "four.txt"
    file.write_text("a fox\na cat\nan owl\na bee\n")
    return str(file)


def session(folder: Path, prompts: str, resume: bool = False, **changes: Any) -> Session:
    settings = helpers.settings(folder, **{**FULL, **changes})
    settings.prompts.name, settings.prompts.path = None, prompts
    return Session(settings, resume=resume)


def stop_after(running: Session, iteration: int) -> None:
    """As a SIGTERM during that iteration would."""
    write = running.write

    def written(row: dict[str, Any]) -> None:
        write(row)
        running.interruption.asked = running.trainer.iteration == iteration

    running.write = written
    with pytest.raises(Stopped, match=f"stopped after iteration {iteration}; go on with --resume"):
        running.train()


def rows(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in line.items() if not key.startswith(VARYING)} for line in lines
    ]


def content(folder: Path) -> tuple[dict[str, Tensor], Any]:
    tensors = {
        f"{file.stem}/{key}": value
        for file in folder.glob("*.safetensors")
        for key, value in load_file(file).items()
    }
    return tensors, json.loads((folder / "state.json").read_text())


def same(one: Path, other: Path) -> None:
    """All checkpoints that both kept, the metrics, and the LoRA."""
    assert rows(one) == rows(other)
    names = [{path.name for path in checkpoint.all_of(run)} for run in (one, other)]
    assert names[0] & names[1]
    for name in names[0] & names[1]:
        tensors, state = content(one / "checkpoints" / name)
        others, other_state = content(other / "checkpoints" / name)
        assert tensors.keys() == others.keys() and state == other_state
        assert {key.split("/")[0] for key in tensors} == {"parameters", "optimizer", "ema"}
        for key, value in tensors.items():
            assert torch.equal(value, others[key]), key
    loras = [load_file(run / "lora" / "pytorch_lora_weights.safetensors") for run in (one, other)]
    assert loras[0].keys() == loras[1].keys()
    assert all(torch.equal(loras[0][key], loras[1][key]) for key in loras[0])


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, prompts: str) -> Path:
    """Four iterations without a stop."""
    folder = tmp_path_factory.mktemp("runs") / "straight"
    session(folder, prompts).train()
    return folder


def test_the_straight_run_has_something_to_lose(straight: Path) -> None:
    """Every part of the state differs from its start, and from one iteration to the next."""
    found = rows(straight)
    assert [row["iteration"] for row in found] == [1, 2, 3, 4]
    assert (
        len({row["lr"] for row in found}) == 4 and len({row["reward/mean"] for row in found}) == 4
    )
    third, last = (content(straight / "checkpoints" / name) for name in ("000003", "000004"))
    for part in ("parameters", "optimizer", "ema"):
        assert any(
            (third[0][key] != last[0][key]).any() for key in third[0] if key.startswith(part)
        )
    assert last[1]["advantage"].keys() == {"a fox", "a cat", "an owl", "a bee"}
    assert {len(values) for values in last[1]["advantage"].values()} == {3}
    assert last[1]["iteration"] == 4 and last[1]["images_seen"] == 32 and last[1]["ema_steps"] == 16


@pytest.mark.parametrize("first", [1, 3])
def test_stop_and_resume_is_the_same_run(
    straight: Path, tmp_path: Path, prompts: str, first: int
) -> None:
    folder = tmp_path / "run"
    stop_after(session(folder, prompts), first)
    assert not (folder / "lora").exists()
    torch.manual_seed(999)  # another process would have another state
    session(folder, prompts, resume=True).train()
    same(folder, straight)


def copy(straight: Path, tmp_path: Path) -> Path:
    """The straight run as it stood after iteration 3, with the lines of iteration 4 already
    written."""
    folder = tmp_path / "run"
    shutil.copytree(straight, folder)
    shutil.rmtree(folder / "lora")
    shutil.rmtree(folder / "checkpoints" / "000004")
    return folder


def test_lines_after_the_checkpoint_and_a_torn_one_are_cut(
    straight: Path, tmp_path: Path, prompts: str
) -> None:
    folder = copy(straight, tmp_path)
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"iteration": 5, "reward/me')
    session(folder, prompts, resume=True).train()
    same(folder, straight)


@pytest.mark.parametrize("damage", ["torn tensors", "torn state", "no state"])
def test_a_damaged_checkpoint_is_passed_over(
    straight: Path, tmp_path: Path, prompts: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = copy(straight, tmp_path)
    newest = folder / "checkpoints" / "000003"
    file = newest / ("parameters.safetensors" if damage == "torn tensors" else "state.json")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    if damage == "no state":
        file.unlink()
    with caplog.at_level(logging.WARNING, logger="ddpo"):
        resumed = session(folder, prompts, resume=True)
    assert resumed.trainer.iteration == 2 and "000003 is not a whole checkpoint" in caplog.text
    if damage == "torn tensors":
        resumed.train()
        same(folder, straight)


def test_a_run_without_a_checkpoint_starts_again(
    straight: Path, tmp_path: Path, prompts: str
) -> None:
    folder = copy(straight, tmp_path)
    shutil.rmtree(folder / "checkpoints")
    resumed = session(folder, prompts, resume=True)
    assert resumed.trainer.iteration == 0 and rows(folder) == []


def test_a_row_of_bad_iterations_is_not_forgotten(
    straight: Path, tmp_path: Path, prompts: str
) -> None:
    folder = copy(straight, tmp_path)
    file = folder / "checkpoints" / "000003" / "state.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "skipped_in_a_row": 2}))
    assert session(folder, prompts, resume=True).trainer.skipped_in_a_row == 2


def test_the_average_is_used_and_put_back(straight: Path, tmp_path: Path, prompts: str) -> None:
    """lora/ holds the running average; an exception within leaves the trained weights in place."""
    tensors, _ = content(straight / "checkpoints" / "000004")
    saved = load_file(straight / "lora" / "pytorch_lora_weights.safetensors")
    averages = sorted(
        value.double().sum().item() for key, value in tensors.items() if key.startswith("ema/")
    )
    assert sorted(value.double().sum().item() for value in saved.values()) == pytest.approx(
        averages
    )
    run = Run(straight)
    for column, name in (("tuned", "000004"), ("000002", "000002")):
        kept = content(straight / "checkpoints" / name)[0]
        with run.policy.weights(run.remember(column)):
            assert all(
                torch.equal(value, kept[f"ema/{key}"])
                for key, value in run.policy.parameters().items()
            )
    running = session(copy(straight, tmp_path), prompts, resume=True)
    parameters = running.trainer.policy.parameters()
    third = content(straight / "checkpoints" / "000003")[0]
    with pytest.raises(KeyError), running.trainer.policy.weights(running.shown):
        assert all(torch.equal(value, third[f"ema/{key}"]) for key, value in parameters.items())
        raise KeyError
    assert all(torch.equal(value, third[f"parameters/{key}"]) for key, value in parameters.items())


def test_only_the_last_checkpoints_are_kept(tmp_path: Path, prompts: str) -> None:
    session(tmp_path / "run", prompts, checkpoint__every=3, checkpoint__keep_last=1).train()
    assert [path.name for path in checkpoint.all_of(tmp_path / "run")] == ["000004"], (
        "the last one always"
    )
    for number in (8, 40, 100):
        (tmp_path / "run" / "checkpoints" / f"{number:06d}").mkdir()
    checkpoint.keep(tmp_path / "run", 2)
    assert [path.name for path in checkpoint.all_of(tmp_path / "run")] == ["000040", "000100"]


def test_a_checkpoint_is_whole_or_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, tensors = tmp_path / "checkpoints" / "000020", {"parameters": {"w": torch.arange(3.0)}}
    checkpoint.save(folder, tensors, {"iteration": 20})
    found, state = checkpoint.load(folder)
    assert torch.equal(found["parameters"]["w"], torch.arange(3.0)) and state == {"iteration": 20}
    assert [path.name for path in folder.parent.iterdir()] == ["000020"], "renamed, not copied"

    def full_disk(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full_disk)
    for name in ("000020", "000040"):
        with pytest.raises(OSError, match="no space"):
            checkpoint.save(tmp_path / "checkpoints" / name, tensors, {"iteration": 0})
    monkeypatch.undo()
    assert [path.name for path in checkpoint.all_of(tmp_path)] == ["000020"]
    assert checkpoint.load(folder)[1] == {"iteration": 20}
    checkpoint.save(folder, tensors, {"iteration": 21})
    assert checkpoint.load(folder)[1] == {"iteration": 21}, (
        "what was left aside does not hinder the next"
    )


def test_an_optimizer_goes_on_where_it_was() -> None:
    def build() -> tuple[dict[str, nn.Parameter], torch.optim.AdamW]:
        named = {"b": nn.Parameter(torch.ones(2)), "a": nn.Parameter(torch.full((3,), 2.0))}
        return named, torch.optim.AdamW(list(named.values()), 0.1)

    def step(named: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, size: float) -> None:
        for parameter in named.values():
            parameter.grad = torch.full_like(parameter, size)
        optimizer.step()

    named, optimizer = build()
    step(named, optimizer, 1.0)
    other, fresh = build()
    tensors = {
        key: value.clone() for key, value in checkpoint.optimizer_tensors(optimizer, named).items()
    }
    checkpoint.restore_parameters(
        other, {key: value.detach().clone() for key, value in named.items()}
    )
    checkpoint.restore_optimizer(fresh, other, tensors)
    step(named, optimizer, -0.3)
    step(other, fresh, -0.3)
    assert all(torch.equal(named[key], other[key]) for key in named)


def test_another_models_weights_are_refused() -> None:
    parameters = {"a": nn.Parameter(torch.zeros(2))}
    with pytest.raises(ValueError, match="2 trained weights differ by name, the first is a"):
        checkpoint.restore_parameters(parameters, {"b": torch.zeros(2)})
    with pytest.raises(
        ValueError, match=r"a has shape \(3,\) in the checkpoint and \(2,\) in the model"
    ):
        checkpoint.restore_parameters(parameters, {"a": torch.zeros(3)})
