"""Everything that the next iteration depends on, on disk: tensors as safetensors, the rest as JSON.

A checkpoint is written aside and renamed when it is whole, so that a folder named 000020 is always complete.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

Parameters = Mapping[str, nn.Parameter]


def save(folder: Path, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
    """Write each mapping of tensors as NAME.safetensors and `state` as state.json, all or nothing."""
    aside = folder.with_name(f".{folder.name}.writing")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    for name, mapping in tensors.items():
        save_file(
            {key: value.detach().cpu().contiguous() for key, value in mapping.items()},
            aside / f"{name}.safetensors",
        )
    (aside / "state.json").write_text(json.dumps(dict(state)))
    for file in aside.iterdir():
        with open(file, "rb") as handle:
            os.fsync(handle.fileno())
    shutil.rmtree(folder, ignore_errors=True)
    os.rename(aside, folder)


def load(folder: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """What `save` wrote. Raises ValueError for a folder that is not a whole checkpoint."""
    try:
        state = json.loads((folder / "state.json").read_text())
        return {file.stem: load_file(file) for file in sorted(folder.glob("*.safetensors"))}, state
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"{folder} is not a whole checkpoint ({error})") from error


def all_of(run_dir: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    folder = run_dir / "checkpoints"
    return sorted(path for path in folder.glob("[0-9]*") if path.is_dir()) if folder.is_dir() else []


def keep(run_dir: Path, last: int) -> None:
    """Delete all but the `last` newest checkpoints."""
    for folder in all_of(run_dir)[:-last]:
        shutil.rmtree(folder)


def optimizer_tensors(optimizer: torch.optim.Optimizer, parameters: Parameters) -> dict[str, Tensor]:
    """An optimiser's per-parameter state under the parameters' names: `exp_avg/unet.conv_in.weight`."""
    return {
        f"{key}/{name}": value
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
        optimizer.state[parameter][key] = value if key == "step" else value.to(parameter.device)


def restore_parameters(parameters: Parameters, tensors: Mapping[str, Tensor]) -> None:
    """Copy saved tensors into parameters of the same names. Raises ValueError when names or shapes differ."""
    if set(tensors) != set(parameters):
        different = sorted(set(tensors) ^ set(parameters))
        raise ValueError(f"{len(different)} trained weights differ by name, the first is {different[0]}")
    with torch.no_grad():
        for name, parameter in parameters.items():
            if tensors[name].shape != parameter.shape:
                saved, present = tuple(tensors[name].shape), tuple(parameter.shape)
                raise ValueError(f"{name} has shape {saved} in the checkpoint and {present} in the model")
            parameter.copy_(tensors[name])
