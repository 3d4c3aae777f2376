"""Trained weights in other programs' formats, read back by diffusers alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler  # pyright: ignore[reportPrivateImportUsage]
from jaxtyping import Float
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor

from ddpo.models import Trial
from ddpo.models._shared import adapters
from ddpo.models._shared.pipelines import TEXT_ENCODERS, fuse, load, old_spelling, quietly
from ddpo.parallel.seeds import generator


def lora_weights(adapted: Mapping[str, Any]) -> dict[str, dict[str, Tensor]]:
    """LoRA weights of each adapted module by the pipeline's name of it, the scale in them.

    The names are peft's. lora_B is multiplied by alpha / rank, so that a reader who knows of no
    alpha is right, too.
    """
    weights = {}
    for kind, module in adapted.items():
        adapter = module.peft_config[adapters.NAME]
        weights[kind] = {
            old_spelling(module, name): value.detach()
            * (adapter.lora_alpha / adapter.r if "lora_B" in name else 1.0)
            for name, value in get_peft_model_state_dict(module).items()
        }
    return weights


def save_lora(pipeline_class: Any, adapted: Mapping[str, Any], folder: Path) -> None:
    """pytorch_lora_weights.safetensors with its metadata."""
    metadata = {}
    for kind, module in adapted.items():
        adapter = module.peft_config[adapters.NAME].to_dict()
        adapter["lora_alpha"] = adapter["r"]  # the scale is in the weights
        # a set has an order per process
        adapter["target_modules"] = sorted(adapter["target_modules"])
        metadata[f"{kind}_lora_adapter_metadata"] = adapter
    layers = {f"{kind}_lora_layers": layer for kind, layer in lora_weights(adapted).items()}
    pipeline_class.save_lora_weights(folder, **layers, **metadata)


def merged_weights(pipeline: Any, components: Sequence[str]) -> dict[str, Tensor]:
    """All weights by name, the adapters of these components added to them and gone."""
    fuse(pipeline, components)
    parts = {
        kind: getattr(pipeline, kind, None) for kind in ("unet", "transformer", *TEXT_ENCODERS)
    }
    return {
        f"{kind}.{name}": weight.detach()
        for kind, module in [*parts.items(), ("vae", pipeline.vae)]
        if module is not None
        for name, weight in module.named_parameters()
    }


def save_kohya(
    layers: Mapping[str, tuple[Tensor, Tensor]], folder: Path, metadata: Mapping[str, str]
) -> None:
    """One file in the spelling of kohya's scripts, which A1111, Forge and ComfyUI read.

    `layers` are (lora_A, lora_B) by a layer's name there, as
    `lora_unet_down_blocks_0_attn1_to_q`; they become `NAME.lora_down.weight` and
    `NAME.lora_up.weight`, and beside them stands an alpha: the rank, since the scale is in the
    weights. The file has a fixed name: diffusers passes over those that contain "checkpoint",
    "scheduler" or "optimizer".
    """
    tensors: dict[str, Tensor] = {}
    for name, (down, up) in layers.items():
        tensors[f"{name}.lora_down.weight"] = down.cpu().contiguous()
        tensors[f"{name}.lora_up.weight"] = up.cpu().contiguous()
        tensors[f"{name}.alpha"] = torch.tensor(float(len(down)))
    rank = str(max(len(down) for down, _ in layers.values()))
    usual = {"format": "pt", "ss_network_module": "networks.lora", "ss_network_dim": rank}
    file = folder / "lora.safetensors"
    save_file(tensors, file, usual | {"ss_network_alpha": rank} | dict(metadata))


def pairs(weights: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """(lora_A, lora_B) by the name of the layer, of weights in peft's spelling."""
    stems = dict.fromkeys(name.rpartition(".lora_")[0] for name in weights)
    return {
        stem: (weights[f"{stem}.lora_A.weight"], weights[f"{stem}.lora_B.weight"]) for stem in stems
    }


def flat_names(
    adapted: Mapping[str, Any], prefixes: Mapping[str, str]
) -> dict[str, tuple[Tensor, Tensor]]:
    """(lora_A, lora_B) by names as kohya spells those of UNets and CLIPs: with _ for dots."""
    return {
        f"{prefixes[kind]}_{layer.replace('.', '_')}": pair
        for kind, weights in lora_weights(adapted).items()
        for layer, pair in pairs(weights).items()
    }


def save_merged(pipeline: Any, folder: Path, components: Sequence[str]) -> None:
    """The whole pipeline, its adapters added to the weights."""
    merged_weights(pipeline, components)
    pipeline.save_pretrained(folder)
    for kind in TEXT_ENCODERS:
        file, module = folder / kind / "model.safetensors", getattr(pipeline, kind, None)
        if module is not None and file.is_file():  # a large one is in several files, and no CLIP
            renamed = {old_spelling(module, k): value for k, value in load_file(file).items()}
            save_file(renamed, file, {"format": "pt"})


def read_back(
    pipeline_class: Any,
    file_format: str,
    folder: Path,
    pretrained: str,
    parts: Mapping[str, None],
) -> Any:
    """A pipeline fresh from the base model that has loaded what was exported, in fp32."""
    merged = file_format == "merged"
    dtypes = {"default": torch.float32}
    pipeline = load(pipeline_class, str(folder) if merged else pretrained, dtypes, parts)
    if not merged and any(folder.glob("*lora*.safetensors")):
        with quietly():
            pipeline.load_lora_weights(str(folder))
    return pipeline


@torch.no_grad()
def drawn(
    pipeline: Any, trial: Trial, device: torch.device, **options: Any
) -> Float[Tensor, "B 3 height width"]:
    """The trial's pictures by the pipeline's own call."""
    if options.get("eta") is not None:
        # of a scheduler of another class the configuration is silent on clipping, and DDIM clips
        # by default
        pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    pipeline.set_progress_bar_config(disable=True)
    made = pipeline.to(device)(
        [prompt.text for prompt in trial.prompts],
        num_inference_steps=trial.num_steps,
        generator=[generator(*key) for key in trial.keys],
        output_type="pt",
        **options,
    )
    return made.images.float().cpu()
