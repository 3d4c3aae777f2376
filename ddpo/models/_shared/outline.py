"""A pipeline without its weights, to count what it needs before it is there."""

import inspect
import warnings
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers.utils import logging

from ddpo.models._shared.architectures import Parts, known
from ddpo.models._shared.families import index_here
from ddpo.models._shared.pipelines import TEXT_ENCODERS


def outline(
    pipeline_class: Any, denoiser: str, pretrained: str, dtype: torch.dtype, whole: bool
) -> Any:
    """The pipeline with weights that have a size but no content and take no memory until read.

    The configurations are read where the files are on this machine; else the names of published
    models are known, and None given for any other. `whole`: the denoiser is trained whole, in
    fp32. Tokenizers are stand-ins: their tokens have the right number and no meaning. Raises
    OSError for a folder without a pipeline.
    """
    try:
        parts = _read(pretrained)
    except OSError:
        if Path(pretrained).exists():
            raise
        parts = None
    parts = parts or known(pretrained)
    if parts is None:
        return None
    logging.set_verbosity_error()  # or each conversion is announced
    made: dict[str, Any] = {name: _made(*part) for name, part in parts.items()}
    for name, module in made.items():
        if name == "scheduler":
            continue
        module.to(torch.float32 if whole and name == denoiser else dtype).to_empty(device="cpu")
        if isinstance(module, transformers.PreTrainedModel):
            module.tie_weights()
        for buffer in module.buffers():
            if not buffer.is_floating_point():
                buffer.zero_()
    for name in TEXT_ENCODERS:
        if name in made:
            made[name.replace("text_encoder", "tokenizer")] = _tokenizer(made[name].config)
    takes = inspect.signature(pipeline_class.__init__).parameters
    nothing: dict[str, Any] = {
        name: None
        for name, parameter in takes.items()
        if name != "self" and name not in made and parameter.default is parameter.empty
    }
    if "requires_safety_checker" in takes:
        nothing["requires_safety_checker"] = False
    return pipeline_class(**made, **nothing)


def _read(pretrained: str) -> Parts | None:
    """The parts of a pipeline that is on this machine; None where it is not."""
    if (index := index_here(pretrained)) is None:
        return None
    parts: Parts = {}
    for name in ("unet", "transformer", "vae", "scheduler", *TEXT_ENCODERS):
        library, class_name = index.get(name) or ("", "")
        if not library:
            continue
        made: Any = getattr(diffusers if library == "diffusers" else transformers, class_name)
        here = {"subfolder": name, "local_files_only": True}
        with warnings.catch_warnings(action="ignore"):
            if library == "diffusers":
                config = made.load_config(pretrained, **here)
            else:
                config = made.config_class.from_pretrained(pretrained, **here).to_dict()
        parts[name] = class_name, dict(config)
    return parts


def _made(class_name: str, config: dict[str, Any]) -> Any:
    made: Any = getattr(diffusers, class_name, None)
    # a scheduler works on its tensors as it is made
    device = "cpu" if class_name.endswith("Scheduler") else "meta"
    with torch.device(device):
        if made is not None:
            return made.from_config(config)
        made = getattr(transformers, class_name)
        return made(made.config_class(**config))


def _tokenizer(config: Any) -> Any:
    """Of digits: any text is as many tokens as a real tokenizer pads it to."""
    if config.model_type.startswith("t5"):
        return transformers.T5Tokenizer(extra_ids=0, model_max_length=512)
    words = {
        "<|startoftext|>": 0,
        "<|endoftext|>": 1,
        **{f"{digit}</w>": 2 + digit for digit in range(10)},
    }
    longest = config.max_position_embeddings
    return transformers.CLIPTokenizer(vocab=words, merges=[], model_max_length=longest)
