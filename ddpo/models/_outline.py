"""A Stable Diffusion pipeline without its weights, to count what it needs before it is there."""

import warnings
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel  # pyright: ignore[reportPrivateImportUsage]
from diffusers.utils import logging
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

SD1: dict[str, dict[str, Any]] = {
    "unet": {"sample_size": 64, "cross_attention_dim": 768},
    "vae": {
        "block_out_channels": (128, 256, 512, 512),
        "layers_per_block": 2,
        "sample_size": 512,
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
    },
    "scheduler": {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1},
    "text_encoder": {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
}
"""Stable Diffusion 1.x as published, where it differs from the classes' defaults in what sizes
depend on."""


def outline(pretrained: str, dtype: torch.dtype, whole: bool) -> StableDiffusionPipeline | None:
    """The pipeline with weights that have a size but no content and take no memory until read.

    The configurations are read where the files are on this machine; else a name
    `.../stable-diffusion-v1...` is known, and None given for any other. `whole`: the UNet is
    trained whole, in fp32. The tokenizer is a stand-in: its tokens have the right number and no
    meaning. Raises OSError for a folder without a pipeline.
    """
    classes = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "scheduler": DDIMScheduler}
    here: dict[str, Any] = {"pretrained_model_name_or_path": pretrained, "local_files_only": True}
    try:
        with warnings.catch_warnings(action="ignore"):
            configs: Any = {
                name: cls.load_config(subfolder=name, **here) for name, cls in classes.items()
            }
        text = CLIPTextConfig.from_pretrained(subfolder="text_encoder", **here)
    except OSError:
        if Path(pretrained).exists():
            raise
        if not pretrained.rpartition("/")[2].startswith("stable-diffusion-v1"):
            return None
        configs, text = SD1, CLIPTextConfig(**SD1["text_encoder"])
    logging.set_verbosity_error()  # or each conversion is announced
    with torch.device("meta"):
        parts: dict[str, Any] = {
            name: cls.from_config(configs[name]) for name, cls in classes.items()
        }
        parts["text_encoder"] = CLIPTextModel(text)
    for name in ("unet", "vae", "text_encoder"):
        parts[name].to(torch.float32 if whole and name == "unet" else dtype).to_empty(device="cpu")
        for buffer in parts[name].buffers():
            buffer.zero_()
    words = {
        "<|startoftext|>": 0,
        "<|endoftext|>": 1,
        **{f"{digit}</w>": 2 + digit for digit in range(10)},
    }
    tokenizer = CLIPTokenizer(vocab=words, merges=[], model_max_length=text.max_position_embeddings)
    return StableDiffusionPipeline(
        **parts,
        tokenizer=tokenizer,
        safety_checker=None,  # pyright: ignore[reportArgumentType]
        feature_extractor=None,  # pyright: ignore[reportArgumentType]
        requires_safety_checker=False,
    )
