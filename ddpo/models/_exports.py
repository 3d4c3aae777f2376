"""A Stable Diffusion's trained weights in other programs' formats, read back by diffusers alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline  # pyright: ignore[reportPrivateImportUsage]
from jaxtyping import Float
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor

from ddpo.models import Trial, _adapters
from ddpo.models._pipelines import load, old_spelling, quietly
from ddpo.parallel.seeds import generator


def lora_weights(adapted: Mapping[str, Any]) -> dict[str, dict[str, Tensor]]:
    """LoRA weights of `unet` and, if trained, `text_encoder`: peft's names, the scale in them.

    lora_B is multiplied by alpha / rank, so that a reader who knows of no alpha is right, too.
    """
    weights = {}
    for kind, module in adapted.items():
        adapter = module.peft_config[_adapters.NAME]
        weights[kind] = {
            name if kind == "unet" else old_spelling(name): value.detach()
            * (adapter.lora_alpha / adapter.r if "lora_B" in name else 1.0)
            for name, value in get_peft_model_state_dict(module).items()
        }
    return weights


def save_lora(adapted: Mapping[str, Any], folder: Path) -> None:
    """pytorch_lora_weights.safetensors with its metadata."""
    metadata = {}
    for kind, module in adapted.items():
        adapter = module.peft_config[_adapters.NAME].to_dict()
        adapter["lora_alpha"] = adapter["r"]  # the scale is in the weights
        # a set has an order per process
        adapter["target_modules"] = sorted(adapter["target_modules"])
        metadata[f"{kind}_lora_adapter_metadata"] = adapter
    layers = {f"{kind}_lora_layers": layer for kind, layer in lora_weights(adapted).items()}
    StableDiffusionPipeline.save_lora_weights(folder, **layers, **metadata)


def merged_weights(pipeline: StableDiffusionPipeline) -> dict[str, Tensor]:
    """All weights by name, the adapters added to them and gone."""
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    return {
        f"{kind}.{name}": weight.detach()
        for kind in ("unet", "text_encoder", "vae")
        for name, weight in getattr(pipeline, kind).named_parameters()
    }


def save_kohya(adapted: Mapping[str, Any], folder: Path, name: str, version_2: bool) -> None:
    """One file in the spelling of kohya's scripts, which A1111, Forge and ComfyUI read.

    `down_blocks.0.attn1.to_q.lora_A.weight` is
    `lora_unet_down_blocks_0_attn1_to_q.lora_down.weight` there, and beside it stands an alpha: the
    rank, since the scale is in the weights. The file has a fixed name: diffusers passes over those
    that contain "checkpoint", "scheduler" or "optimizer".
    """
    tensors: dict[str, Tensor] = {}
    for kind, weights in lora_weights(adapted).items():
        for key, value in weights.items():
            layer, _, matrix = key.removesuffix(".weight").rpartition(".lora_")
            stem = f"lora_{'te' if kind == 'text_encoder' else kind}_{layer.replace('.', '_')}"
            tensors[f"{stem}.lora_{'down' if matrix == 'A' else 'up'}.weight"] = (
                value.cpu().contiguous()
            )
            if matrix == "A":
                tensors[f"{stem}.alpha"] = torch.tensor(float(len(value)))
    rank = str(max(int(value) for key, value in tensors.items() if key.endswith(".alpha")))
    metadata = {"format": "pt", "ss_network_module": "networks.lora", "ss_network_dim": rank}
    metadata |= {"ss_network_alpha": rank, "ss_output_name": name, "ss_v2": str(version_2)}
    save_file(tensors, folder / "lora.safetensors", metadata)


def save_merged(pipeline: StableDiffusionPipeline, folder: Path) -> None:
    """The whole pipeline, its adapter added to the weights."""
    merged_weights(pipeline)
    pipeline.save_pretrained(folder)
    file = folder / "text_encoder" / "model.safetensors"
    save_file(
        {old_spelling(key): value for key, value in load_file(file).items()}, file, {"format": "pt"}
    )


def read_back(
    file_format: str, folder: Path, pretrained: str, trial: Trial, device: torch.device
) -> tuple[Float[Tensor, "B 3 height width"], dict[str, Tensor]]:
    """The trial's pictures and the merged weights by plain diffusers, fresh from the base model."""
    pipeline = load(str(folder) if file_format == "merged" else pretrained, torch.float32)
    if file_format != "merged":
        with quietly():
            pipeline.load_lora_weights(str(folder))
    # of a scheduler of another class the configuration is silent on clipping, and DDIM clips by
    # default
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    pipeline.set_progress_bar_config(disable=True)
    made = pipeline.to(device)(
        [prompt.text for prompt in trial.prompts],
        num_inference_steps=trial.num_steps,
        guidance_scale=trial.guidance_scale,
        negative_prompt=[trial.negative_prompt] * len(trial.prompts),
        eta=trial.eta,
        generator=[generator(*key) for key in trial.keys],
        output_type="pt",
    )
    return made.images.float().cpu(), merged_weights(pipeline)  # pyright: ignore
