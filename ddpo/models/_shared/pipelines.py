"""Pipelines of diffusers: loaded, checked, and with LoRA files merged into them."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.utils import logging as diffusers_logging
from torch import nn
from transformers import CLIPTextModel
from transformers.utils import logging as transformers_logging

from ddpo.errors import UserError, nearest, refusal
from ddpo.models._shared.families import FAMILIES, no_pipeline, place_of

TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
"""The names that pipelines have for theirs."""


def old_spelling(module: nn.Module, name: str) -> str:
    """A text encoder's weight as transformers before 5.6 named it, which all programs read."""
    flat = isinstance(module, CLIPTextModel) and not name.startswith("text_model.")
    return f"text_model.{name}" if flat else name


def load(
    pipeline_class: Any,
    pretrained: str,
    dtypes: Mapping[str, torch.dtype],
    parts: Mapping[str, Any] | None = None,
) -> Any:
    """A pipeline by name; `parts` take the place of its own.

    dtypes  precision by the name of a part, and of the others under "default"

    Never with a safety checker, whose black pictures would compress best. Raises UserError where
    there is none of that class.
    """
    place, name = place_of(pretrained), pipeline_class.__name__
    try:
        with quietly():
            index = pipeline_class.load_config(place)
            other = index.get("_class_name", name)
            if other != name and other in FAMILIES:
                raise UserError(
                    f"model.name: {FAMILIES[name]} loads a {name}, and {pretrained!r} is a "
                    f"{other}; take {FAMILIES[other]}, or auto"
                )
            # parts that were saved as None have to be given as None
            given = {key: None for key, part in index.items() if part == [None, None]}
            if "requires_safety_checker" in index:
                given |= {"safety_checker": None, "feature_extractor": None}
                given |= {"requires_safety_checker": False}
            return pipeline_class.from_pretrained(
                place, dtype=dict(dtypes), **given, **(parts or {})
            )
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise no_pipeline(pretrained, error, name) from error


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


def check_targets(network: nn.Module, targets: Iterable[str] | None) -> None:
    """Raises UserError for a name that fits no layer; peft passes over it if another one fits."""
    layers = [
        name for name, layer in network.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)
    ]
    ends = {found[0] for name in layers if (found := re.search(r"[^.]+(\.\d+)?$", name))}
    for target in targets or ():
        if not any(f".{name}".endswith(f".{target}") for name in layers):
            raise UserError(
                f"lora.target_modules: no layer is called {target!r}{nearest(target, ends)}"
            )


def merge_lora(pipeline: Any, file: str, components: Sequence[str]) -> None:
    """Make a LoRA part of the weights of the components that may carry one.

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
    fuse(pipeline, components)


def fuse(pipeline: Any, components: Sequence[str]) -> None:
    """Add the adapters of these components to their weights; the adapters are gone then."""
    pipeline.fuse_lora(components=list(components))
    pipeline.unload_lora_weights()
