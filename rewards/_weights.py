"""Weights from a folder or from the Hub: loaded whole, or refused in one line."""

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from safetensors.torch import load_file
from torch import Tensor

from ddpo.rewards import UserError

HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")


def expanded(name: str) -> str:
    """The name, or the folder or file with its ~ expanded."""
    return str(Path(name).expanduser()) if name.startswith("~") else name


@contextmanager
def loading(option: str, name: str) -> Iterator[None]:
    """Turn whatever goes wrong while `name` is loaded into one line.

    `option` is the reward's, as `clip_score.pretrained`. Raises UserError.
    """
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)  # what the libraries log of a failure, the line says
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # every library has its own
        place = Path(expanded(name.removeprefix("local-dir:")))
        said = " ".join(str(error).split())
        told = f"{type(error).__name__}: {said[:120]}{'...' * (len(said) > 120)}"
        if (
            isinstance(error, (MemoryError, torch.OutOfMemoryError))
            or "can't allocate memory" in said
        ):
            remedy = "take a smaller one, or put it elsewhere with ddpo serve"
            raise UserError(
                f"{option}: {name} does not fit into memory ({told}); {remedy}"
            ) from error
        if place.exists():
            raise UserError(f"{option}: {name} does not hold what is needed ({told})") from error
        if name.startswith("local-dir:") or not HUB_NAME.fullmatch(name.removeprefix("hf-hub:")):
            raise UserError(
                f"{option}: there is no {place}; give a folder or a name on the Hub"
            ) from error
        remedy = "give the folder of a copy, or another name"
        if os.environ.get("HF_HUB_OFFLINE", "0") not in ("0", ""):
            remedy = f"HF_HUB_OFFLINE is set: unset it, or {remedy}"
        raise UserError(
            f"{option}: {name} is no folder here and did not load from the Hub; {remedy} ({told})"
        ) from error
    finally:
        logging.disable(before)


def pretrained(kind: Any, name: str, device: torch.device | str, dtype: torch.dtype) -> Any:
    """`kind.from_pretrained(name)` in eval mode, without gradients of its own; ~ is expanded.

    Raises ValueError where weights are missing: transformers would draw them at random and only log
    it.
    """
    model, info = kind.from_pretrained(expanded(name), dtype=dtype, output_loading_info=True)
    missing = sorted(key for key in info["missing_keys"] if not key.startswith("pooler."))  # unused
    if missing:
        raise ValueError(
            f"{len(missing)} weights of {type(model).__name__} are missing, as {missing[0]}"
        )
    return model.to(device).eval().requires_grad_(False)


def file(name: str, wanted: str) -> str:
    """The file `wanted` of a folder or of a repository on the Hub; `name` if it is a file.

    ~ is expanded.
    """
    name = expanded(name)
    place = Path(name)
    if place.is_dir() and not (place / wanted).is_file():
        raise FileNotFoundError(f"no {wanted}")
    if place.is_dir():
        return str(place / wanted)
    return name if place.is_file() else hf_hub_download(name, wanted)


def tensors(file: str) -> dict[str, Tensor]:
    """The named tensors of a .safetensors file or of one that torch saved.

    Nothing else is unpickled.
    """
    if file.endswith(".safetensors"):
        return load_file(file)
    return torch.load(file, map_location="cpu", weights_only=True)
