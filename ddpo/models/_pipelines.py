"""Pipelines of diffusers: found, loaded, checked, and with LoRA files merged into them."""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline  # pyright: ignore[reportPrivateImportUsage]
from diffusers.utils import logging as diffusers_logging
from huggingface_hub.constants import HF_HUB_OFFLINE
from torch import nn
from transformers.utils import logging as transformers_logging

from ddpo.errors import UserError, nearest, refusal

EMBEDDED = Path(__file__).parent / "emoji" / "weights" / "pipeline"


def old_spelling(name: str) -> str:
    """A text encoder's weight as transformers before 5.6 named it, which all programs read."""
    return name if name.startswith("text_model.") else f"text_model.{name}"


def load(pretrained: str, dtype: torch.dtype) -> StableDiffusionPipeline:
    """A pipeline by name, without its safety checker (whose black pictures would compress best)."""
    try:
        with quietly():
            return StableDiffusionPipeline.from_pretrained(
                place_of(pretrained),
                dtype=dtype,
                safety_checker=None,
                feature_extractor=None,
                requires_safety_checker=False,
            )
    except (OSError, ValueError) as error:
        raise no_pipeline(pretrained, error) from error


@contextmanager
def quietly() -> Iterator[None]:
    """Within it diffusers tells errors only: no hints, and from then on no bars."""
    level = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        diffusers_logging.set_verbosity(level)


def check_targets(unet: nn.Module, targets: Iterable[str] | None) -> None:
    """Raises UserError for a name that fits no layer; peft passes over it if another one fits."""
    layers = [
        name for name, layer in unet.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)
    ]
    ends = {found[0] for name in layers if (found := re.search(r"[^.]+(\.\d+)?$", name))}
    for target in targets or ():
        if not any(f".{name}".endswith(f".{target}") for name in layers):
            raise UserError(
                f"lora.target_modules: no layer is called {target!r}{nearest(target, ends)}"
            )


def place_of(pretrained: str) -> str:
    if pretrained == "emoji" and not (EMBEDDED / "model_index.json").is_file():
        raise UserError(
            f"model.pretrained: the embedded model is not at {EMBEDDED}; reinstall ddpo"
        )
    return str(EMBEDDED) if pretrained == "emoji" else pretrained


def no_pipeline(pretrained: str, error: Exception) -> UserError:
    if line := refusal(error):
        return UserError(f"model.pretrained: {pretrained!r}: {line}")
    reason = " ".join(str(error).split())[:200]
    where = "is no folder of a StableDiffusionPipeline"
    if not Path(place_of(pretrained)).exists():
        where = "is no folder, and as a hub id it cannot be loaded"
        if HF_HUB_OFFLINE:
            where += " while HF_HUB_OFFLINE is set: unset that, or download the model before"
    return UserError(f"model.pretrained: {pretrained!r} {where} ({reason})")


def merge_lora(pipeline: StableDiffusionPipeline, file: str) -> None:
    """Make a LoRA part of the weights.

    Raises UserError where it changes nothing: diffusers would not say.
    """
    try:
        with quietly():
            pipeline.load_lora_weights(file)
    except (OSError, ValueError) as error:
        told = refusal(error) or f"cannot be read as a LoRA of this model ({error})"
        raise UserError(f"model.loras: {file!r}: {told}") from error
    if not pipeline.get_list_adapters():
        empty = "holds no weights in the diffusers format; nothing was loaded from it"
        raise UserError(f"model.loras: {file!r} {empty}")
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
