"""Random tiny pipelines of each family's true classes, and policies around them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import helpers
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from peft import LoraConfig
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from ddpo.models._tiny import _alphabet, tiny
from ddpo.models.flux import flux as Flux
from ddpo.models.sd3 import sd3 as StableDiffusion3
from ddpo.models.sdxl import sdxl as StableDiffusionXL
from ddpo.models.stable_diffusion import StableDiffusion

PICTURES = {"prompts": ["a fox", "two owls"], "size": (24, 32)}


def clip(kind: Any = CLIPTextModelWithProjection, width: int = 16) -> tuple[Any, CLIPTokenizer]:
    """A text encoder of two layers, of which the last but one is not the embedding, and its
    tokenizer."""
    alphabet = _alphabet()
    config = CLIPTextConfig(
        vocab_size=len(alphabet),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=16,
        projection_dim=width,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return kind(config).eval(), CLIPTokenizer(vocab=alphabet, merges=[], model_max_length=16)


def t5(width: int = 32) -> tuple[T5EncoderModel, T5Tokenizer]:
    letters = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]
    letters += [(chr(i), -3.0) for i in range(97, 123)]
    config = T5Config(
        vocab_size=len(letters), d_model=width, d_ff=32, d_kv=8, num_layers=2, num_heads=2
    )
    tokenizer = T5Tokenizer(vocab=letters, extra_ids=0, model_max_length=64)
    return T5EncoderModel(config).eval(), tokenizer


def vae(channels: int, **more: Any) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        sample_size=16,
        latent_channels=channels,
        mid_block_add_attention=False,
        **more,
    ).eval()


def tiny_sdxl(
    prediction_type: str = "epsilon", seed: int = 0, zero_snr: bool = False
) -> StableDiffusionXLPipeline:
    torch.manual_seed(seed)
    (one, tokenizer), (two, tokenizer_2) = clip(CLIPTextModel), clip()
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=32,
        attention_head_dim=(2, 2),
        transformer_layers_per_block=(1, 2),
        use_linear_projection=True,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + 16,
    ).eval()
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
        rescale_betas_zero_snr=zero_snr,
        timestep_spacing="trailing" if zero_snr else "leading",
    )
    return StableDiffusionXLPipeline(
        vae(4, scaling_factor=0.13), one, two, tokenizer, tokenizer_2, unet, scheduler
    )


def tiny_sd3(
    with_t5: bool = True, seed: int = 0, positions: int = 12, **scheduler: Any
) -> StableDiffusion3Pipeline:
    torch.manual_seed(seed)
    (one, tokenizer), (two, tokenizer_2) = clip(), clip()
    three, tokenizer_3 = t5() if with_t5 else (None, None)
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_projection_dim=16,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        pos_embed_max_size=positions,
        qk_norm="rms_norm",
        dual_attention_layers=(0,),
    ).eval()
    return StableDiffusion3Pipeline(
        transformer,
        FlowMatchEulerDiscreteScheduler(**{"shift": 3.0, **scheduler}),
        vae(4, scaling_factor=1.5, shift_factor=0.06),
        one,
        tokenizer,
        two,
        tokenizer_2,
        three,
        tokenizer_3,
    )


def tiny_flux(guidance_embeds: bool = True, seed: int = 0) -> FluxPipeline:
    torch.manual_seed(seed)
    (one, tokenizer), (two, tokenizer_2) = clip(CLIPTextModel), t5()
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=16,
        guidance_embeds=guidance_embeds,
        axes_dims_rope=(4, 4, 8),
    ).eval()
    return FluxPipeline(
        FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0),
        vae(4, scaling_factor=0.36, shift_factor=0.12),
        one,
        tokenizer,
        two,
        tokenizer_2,
        transformer,
    )


FAMILIES: dict[str, tuple[Any, Callable[..., Any]]] = {
    "stable_diffusion": (StableDiffusion, tiny),
    "sdxl": (StableDiffusionXL, tiny_sdxl),
    "sd3": (StableDiffusion3, tiny_sd3),
    "flux": (Flux, tiny_flux),
}
"""Name -> (the family's class, a random pipeline of it)."""

SMALL = {"sd3": {"max_sequence_length": 24}, "flux": {"max_sequence_length": 24, "size": (16, 16)}}
"""Options under which a tiny model is quick."""


def adapter(family: str, **changes: Any) -> LoraConfig:
    return helpers.adapter(target_modules=list(FAMILIES[family][0].lora_targets), **changes)


def policy(family: str, *, moved: float = 0.0, seed: int = 0, **options: Any) -> Any:
    """The family's tiny model with its usual adapter; `moved` shifts every trained weight, by so
    much."""
    kind, make = FAMILIES[family]
    pipeline = options.pop("pipeline", None) or make(seed=seed)
    lora = options.pop("lora", adapter(family))
    torch.manual_seed(1)
    built = kind(pipeline, lora=lora, **{**SMALL.get(family, {}), **options})
    if moved:
        helpers.move(built, moved)
    return built


def saved(family: str, folder: Path, **options: Any) -> str:
    """The tiny pipeline as diffusers saves it."""
    FAMILIES[family][1](**options).save_pretrained(folder)
    return str(folder)
