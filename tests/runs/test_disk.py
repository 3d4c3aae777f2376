"""What is on disk is whole: after a full disk, with a damaged checkpoint, and nothing of it is
unpickled."""

import errno
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import helpers
import pytest
import torch
from helpers import call, done, saved
from safetensors import SafetensorError
from safetensors.torch import load_file

from ddpo.__main__ import main
from ddpo.models.stable_diffusion import StableDiffusion
from ddpo.records import checkpoint, files, metrics
from ddpo.runs import folder as run_folder
from ddpo.runs import session
from ddpo.runs.finished import Run


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three iterations without a fault."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    assert main(["train", *helpers.smoke(folder), "--checkpoint.every", "1"]) == 0
    return folder


def full(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "the disk")


def full_halfway(file: Path, row: dict[str, Any]) -> None:
    with open(file, "a") as lines:
        lines.write(json.dumps(row)[:40])
    full()


def full_in_rust(tensors: Any, file: Path) -> None:
    file.write_bytes(b"half")
    raise SafetensorError(
        "Error while serializing: I/O error: No space left on device (os error 28)"
    )


def full_in_folder(policy: StableDiffusion, folder: Path) -> None:
    folder.mkdir()
    full_in_rust({}, folder / "pytorch_lora_weights.safetensors")


def at_call(
    number: int, original: Callable[..., Any], then: Callable[..., Any]
) -> Callable[..., Any]:
    calls: list[int] = []

    def counted(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        return (then if len(calls) == number else original)(*arguments, **options)

    return counted


FULL: dict[str, tuple[object, str, int, Callable[..., Any], list[str]]] = {
    "metrics": (metrics, "write", 2, full_halfway, ["000001"]),
    "tensors": (checkpoint, "save_file", 4, full_in_rust, ["000001"]),
    "state": (checkpoint, "_hash", 3, full, ["000001"]),
    "sync": (files, "_sync", 15, full, ["000001"]),
    "lora": (StableDiffusion, "save", 1, full_in_folder, ["000001", "000002", "000003"]),
}
"""Who writes, the call that finds the disk full, what that one does, and the checkpoints that
stay."""


@pytest.mark.parametrize("place", FULL)
def test_a_full_disk(
    place: str,
    straight: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, (owner, name, number, then, kept) = tmp_path / "run", FULL[place]
    monkeypatch.setattr(owner, name, at_call(number, getattr(owner, name), then))
    code, line = call(capsys, *helpers.smoke(run), "--checkpoint.every", "1")
    monkeypatch.undo()
    last = int(kept[-1])
    assert code == 3 and "No space left on device" in line
    assert line.endswith(f"; once that is mended, --resume {run} goes on from iteration {last}")
    assert saved(run) == kept, "and nothing half-written beside them"
    assert not (run / "lora").exists() and not list(run.rglob(".*"))
    assert call(capsys, "--resume", str(run)) == (0, "")
    assert done(run) == [1, 2, 3] and saved(run) == saved(straight)
    for file in ("lora/pytorch_lora_weights", "checkpoints/000003/optimizer"):
        one, other = (load_file(each / f"{file}.safetensors") for each in (run, straight))
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def tree(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_full_disk_at_the_start(
    straight: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A new run is not there at all; one that is continued keeps every byte."""
    old = tmp_path / "old"
    shutil.copytree(straight, old)
    before = tree(old)
    monkeypatch.setattr(files, "_sync", full)
    new = tmp_path / "a" / "new"
    for run, argv in (
        (new, helpers.smoke(new)),
        (old, ["--resume", str(old), "--trainer.iterations", "4"]),
    ):
        code, line = call(capsys, *argv)
        assert code == 3
        assert line == (
            f"run_dir: {run} cannot be written to (No space left on device); "
            "make room and give the same command again"
        )
    assert not (tmp_path / "a").exists() and tree(old) == before


def test_an_overwrite_that_is_cut_short(
    straight: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is left of the old run is never taken for the new one's: the folder still asks for
    --overwrite."""
    run = tmp_path / "run"
    shutil.copytree(straight, run)
    monkeypatch.setattr(run_folder, "remove", at_call(8, run_folder.remove, full))
    assert call(capsys, *helpers.smoke(run), "--overwrite")[0] == 3
    monkeypatch.undo()
    assert not (run / "lora").exists() and (run / "provenance.json").exists()
    code, line = call(capsys, *helpers.smoke(run))
    assert code == 2 and "already holds a run" in line
    assert call(capsys, *helpers.smoke(run), "--overwrite") == (0, "") and done(run) == [1, 2, 3]


def test_a_picture_that_cannot_be_written(
    straight: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "nowhere" / "x.png"
    argv = ["grid", str(straight), "--count", "1", "--out", str(out)]
    assert main(argv) == 2
    words = f"ddpo: {out}: No such file or directory; name another place"
    assert capsys.readouterr().err.splitlines()[-1] == words
    monkeypatch.setattr("ddpo.runs.grid.grid", full)
    assert main(argv) == 3
    words = "ddpo: the disk: No space left on device; make room and give the same command again"
    assert capsys.readouterr().err.splitlines()[-1] == words


def test_what_cannot_be_continued(
    straight: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another model's checkpoint, other prompts under the same name: exit code 2, every byte as
    before."""
    run = tmp_path / "run"
    shutil.copytree(straight, run)
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("rank: 4", "rank: 2"))
    before = tree(run)
    code, line = call(capsys, "--resume", str(run))
    assert code == 2 and line.startswith(
        f"{run / 'checkpoints' / '000003'} is of another model: unet."
    )
    assert "in the checkpoint and (2, " in line and tree(run) == before
    (run / "config.yaml").write_text(text)
    file = run / "provenance.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"prompt_set_sha256": "0" * 64}))
    before = tree(run)
    code, line = call(capsys, "--resume", str(run))
    assert (
        code == 2
        and line.startswith(f"prompts: no longer those of the run in {run}")
        and tree(run) == before
    )


class Evil:
    """What a pickle may do when it is loaded."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


def test_no_pickle_is_ever_loaded(
    straight: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Neither one beside a checkpoint's files, nor one that has taken their names, nor one in their
    place."""
    run, trap = tmp_path / "run", tmp_path / "trap"
    shutil.copytree(straight, run)
    torch.save(Evil(trap), tmp_path / "evil")
    torch.load(tmp_path / "evil", weights_only=False)
    assert trap.exists(), "the trap works"
    trap.unlink()
    shutil.copytree(run / "checkpoints" / "000003", run / "checkpoints" / "000004")
    (run / "checkpoints" / "000005").mkdir()
    names = [
        "optimizer.pt",
        "pytorch_model.bin",
        "state.pkl",
        "random_states_0.pkl",
        "scheduler.bin",
    ]
    for name in names:
        for number in ("000003", "000005"):
            shutil.copy(tmp_path / "evil", run / "checkpoints" / number / name)
    for name in ("parameters.safetensors", "optimizer.safetensors", "state.json"):
        shutil.copy(tmp_path / "evil", run / "checkpoints" / "000004" / name)
    (run / "checkpoints" / "000004" / "state.json").write_bytes(pickle.dumps(Evil(trap)))
    assert call(capsys, "--resume", str(run)) == (0, "") and not trap.exists()
    assert "000005 is not a whole checkpoint (No such file" in caplog.text
    assert (
        "000004 is not a whole checkpoint (" in caplog.text and "from iteration 3 of" in caplog.text
    )


@pytest.mark.parametrize("kind", ["bit", "missing", "other file"])
def test_a_corrupt_checkpoint_is_passed_over(
    kind: str,
    straight: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One wrong bit in the middle of the tensors is still a valid file: only its sha256 tells."""
    run = tmp_path / "run"
    shutil.copytree(straight, run)
    newest = run / "checkpoints" / "000003"
    file = newest / "optimizer.safetensors"
    content = bytearray(file.read_bytes())
    content[-7] ^= 1
    file.write_bytes(content)
    load_file(file)
    if kind == "missing":
        file.unlink()
    if kind == "other file":
        shutil.copy(newest / "parameters.safetensors", file)
    Run(run).remember("tuned")
    assert (
        "000003 is not a whole checkpoint (" in caplog.text
        and "going back to the one before" in caplog.text
    )
    assert call(capsys, "--resume", str(run)) == (0, "") and done(run) == [1, 2, 3]
    one, other = (
        load_file(each / "checkpoints/000003/optimizer.safetensors") for each in (run, straight)
    )
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_stale_lora_is_written_again(
    straight: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A finished run goes further and is killed after its last checkpoint: lora/ is still the old
    one."""
    run = tmp_path / "run"
    shutil.copytree(straight, run)
    old = (run / "lora" / "pytorch_lora_weights.safetensors").read_bytes()
    monkeypatch.setattr(session.Session, "finish", full)
    assert call(capsys, "--resume", str(run), "--trainer.iterations", "4")[0] == 3
    monkeypatch.undo()
    assert (run / "lora" / "pytorch_lora_weights.safetensors").read_bytes() == old
    assert call(capsys, "--resume", str(run)) == (0, "")
    assert (run / "lora" / "pytorch_lora_weights.safetensors").read_bytes() != old
