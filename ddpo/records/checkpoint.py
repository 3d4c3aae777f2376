"""Everything that the next iteration depends on, on disk: tensors as safetensors, the rest as JSON.

A checkpoint is written aside and renamed when it is whole, so that a folder named 000020 is
complete; what happens to it later shows in the sha256 of its files. Nothing in it is ever
unpickled.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ddpo.errors import UserError
from ddpo.records.files import whole

Parameters = Mapping[str, nn.Parameter]
Content = tuple[dict[str, dict[str, Tensor]], dict[str, Any]]
"""Mappings of tensors by name, and the state."""

log = logging.getLogger("ddpo")


def save(
    folder: Path, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]
) -> None:
    """Write each mapping of tensors as NAME.safetensors and `state` as state.json, all or nothing.

    Raises OSError, on a full disk, say; then nothing of it is left.
    """
    with whole(folder) as aside:
        aside.mkdir()
        hashes = {}
        for name, mapping in tensors.items():
            file = aside / f"{name}.safetensors"
            save_file(
                {key: value.detach().cpu().contiguous() for key, value in mapping.items()}, file
            )
            hashes[name] = _hash(file)
        (aside / "state.json").write_text(json.dumps({**state, "sha256": hashes}))


def load(folder: Path) -> Content:
    """What `save` wrote. Raises UserError for a folder that is not a whole checkpoint."""
    try:
        state = json.loads((folder / "state.json").read_text())
        tensors = {}
        for name, expected in state.pop("sha256").items():
            file = folder / f"{name}.safetensors"
            if _hash(file) != expected:
                raise ValueError(f"{file.name} is damaged")
            tensors[name] = load_file(file)
        return tensors, state
    except (OSError, ValueError, LookupError, AttributeError, TypeError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{folder} is not a whole checkpoint ({reason})") from error


def _hash(file: Path) -> str:
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def all_of(run_dir: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted(path for path in (run_dir / "checkpoints").glob("[0-9]*") if path.is_dir())


def newest(run_dir: Path) -> tuple[Path, Content] | None:
    """The newest whole checkpoint of a run; None where there is none.

    A damaged one is passed over with a line in the log.
    """
    for folder in reversed(all_of(run_dir)):
        try:
            return folder, load(folder)
        except UserError as error:
            log.warning("%s; going back to the one before", error)
    return None


def find(run_dir: Path, wanted: str = "last") -> Path:
    """The checkpoint "last" (the newest whole one), "best", or "000020", which may be written 20.

    The best is of the iteration whose evaluation on the way (`evaluation.every`) had the highest
    reward.
    Raises UserError, naming those that there are, where it is not there.
    """
    there = {path.name: path for path in all_of(run_dir)}
    if not there:
        raise UserError(
            f"{run_dir} has no checkpoint yet; let it train, or go on with --resume {run_dir}"
        )
    name, asked = wanted, f"checkpoint {wanted}"
    if wanted.isdecimal():
        name = wanted.zfill(6)
    elif wanted in ("last", "best") and (found := newest(run_dir)):
        folder, (_, state) = found
        best = f"{state['best']['iteration']:06d}" if state["best"] else "none"
        name = folder.name if wanted == "last" else best
        asked = "best checkpoint (it takes evaluation.every)" if wanted == "best" else asked
    if name not in there:
        raise UserError(f"{run_dir} has no {asked}; there are: {', '.join(there)}")
    return there[name]


def keep(
    run_dir: Path, last: int, best: int | None = None, spaced: int = 0, every: int = 1
) -> None:
    """Delete all but the `last` newest checkpoints, the one of iteration `best` and `spaced` more.

    These are at multiples of `every` times a power of two, the smallest with which they are not
    more: what is kept later was kept before. What kills have left goes, too.
    """
    folders = all_of(run_dir)
    stride, newest = every, max((int(folder.name) for folder in folders), default=0)
    while spaced and newest // stride > spaced:
        stride *= 2
    for folder in folders[:-last]:
        iteration = int(folder.name)
        if iteration != best and not (spaced and iteration % stride == 0):
            shutil.rmtree(folder)
    for folder in (run_dir / "checkpoints").glob(".*.writing"):
        shutil.rmtree(folder)


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, parameters: Parameters
) -> dict[str, Tensor]:
    """An optimizer's state by its parameters' names: `exp_avg/unet.conv_in.weight`."""
    return {
        f"{key}/{name}": torch.as_tensor(value)  # some count their steps in plain numbers
        for name, parameter in parameters.items()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer, parameters: Parameters, tensors: Mapping[str, Tensor]
) -> None:
    """The inverse of `optimizer_tensors`, in place."""
    optimizer.state.clear()
    for flat, value in tensors.items():
        key, name = flat.split("/", 1)
        parameter = parameters[name]
        if key != "step":
            value = value.to(parameter.device)
        elif not value.is_floating_point():
            value = int(value)
        optimizer.state[parameter][key] = value


def restore_parameters(parameters: Parameters, tensors: Mapping[str, Tensor]) -> None:
    """Copy saved tensors into parameters of the same names.

    Raises UserError when names or shapes differ.
    """
    check_parameters(parameters, tensors)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])


def check_parameters(parameters: Parameters, tensors: Mapping[str, Tensor]) -> None:
    """Raises UserError when names or shapes differ."""
    if set(tensors) != set(parameters):
        different = sorted(set(tensors) ^ set(parameters))
        raise UserError(
            f"{len(different)} trained weights differ by name, the first is {different[0]}"
        )
    for name, parameter in parameters.items():
        saved, present = tuple(tensors[name].shape), tuple(parameter.shape)
        if saved != present:
            raise UserError(
                f"{name} has shape {saved} in the checkpoint and {present} in the model"
            )
