"""Published models, where they differ from the classes' defaults in what sizes depend on."""

from typing import Any

Parts = dict[str, tuple[str, dict[str, Any]]]
"""A pipeline's parts: name -> (class, its configuration)."""


def _vae(channels: int, size: int, **more: Any) -> tuple[str, dict[str, Any]]:
    blocks = {
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (128, 256, 512, 512),
        "layers_per_block": 2,
    }
    return "AutoencoderKL", {**blocks, "latent_channels": channels, "sample_size": size, **more}


CLIP_L = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "projection_dim": 768,
}
CLIP_G = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
    "hidden_act": "gelu",
}
T5_XXL = {
    "d_model": 4096,
    "d_ff": 10240,
    "d_kv": 64,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
}
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
VAE_16 = {"use_quant_conv": False, "use_post_quant_conv": False}

SD1: Parts = {
    "unet": ("UNet2DConditionModel", {"sample_size": 64, "cross_attention_dim": 768}),
    "vae": _vae(4, 512),
    "scheduler": (
        "DDIMScheduler",
        {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1},
    ),
    "text_encoder": ("CLIPTextModel", CLIP_L),
}

SDXL: Parts = {
    "unet": (
        "UNet2DConditionModel",
        {
            "sample_size": 128,
            "block_out_channels": (320, 640, 1280),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2, 10),
            "attention_head_dim": (5, 10, 20),
            "cross_attention_dim": 2048,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
    ),
    "vae": _vae(4, 1024, scaling_factor=0.13025),
    "scheduler": ("EulerDiscreteScheduler", {**BETAS, "steps_offset": 1}),
    "text_encoder": ("CLIPTextModel", CLIP_L),
    "text_encoder_2": ("CLIPTextModelWithProjection", CLIP_G),
}


def _sd3(layers: int, positions: int, **more: Any) -> Parts:
    """Stable Diffusion 3: as many attention heads as layers, of 64 numbers each."""
    transformer = {
        "sample_size": 128,
        "in_channels": 16,
        "out_channels": 16,
        "num_layers": layers,
        "num_attention_heads": layers,
        "caption_projection_dim": 64 * layers,
        "joint_attention_dim": 4096,
        "pooled_projection_dim": 2048,
        "pos_embed_max_size": positions,
    }
    return {
        "transformer": ("SD3Transformer2DModel", {**transformer, **more}),
        "vae": _vae(16, 1024, scaling_factor=1.5305, shift_factor=0.0609, **VAE_16),
        "scheduler": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
        "text_encoder": ("CLIPTextModelWithProjection", CLIP_L),
        "text_encoder_2": ("CLIPTextModelWithProjection", CLIP_G),
        "text_encoder_3": ("T5EncoderModel", T5_XXL),
    }


def _flux(guidance: bool, **scheduler: Any) -> Parts:
    """FLUX.1: dev is distilled with guidance as an input, schnell has none."""
    return {
        "transformer": (
            "FluxTransformer2DModel",
            {"guidance_embeds": guidance, "axes_dims_rope": (16, 56, 56)},
        ),
        "vae": _vae(16, 1024, scaling_factor=0.3611, shift_factor=0.1159, **VAE_16),
        "scheduler": ("FlowMatchEulerDiscreteScheduler", scheduler),
        "text_encoder": ("CLIPTextModel", CLIP_L),
        "text_encoder_2": ("T5EncoderModel", T5_XXL),
    }


RMS = {"qk_norm": "rms_norm"}
KNOWN: dict[str, Parts] = {
    "stable-diffusion-v1": SD1,
    "stable-diffusion-xl-base": SDXL,
    "stable-diffusion-3-medium": _sd3(24, 192),
    "stable-diffusion-3.5-medium": _sd3(24, 384, dual_attention_layers=tuple(range(13)), **RMS),
    "stable-diffusion-3.5-large": _sd3(38, 192, **RMS),
    "FLUX.1-dev": _flux(True, use_dynamic_shifting=True, shift=3.0),
    "FLUX.1-schnell": _flux(False, shift=1.0),
}
"""How the name of a published model begins -> its parts."""


def known(pretrained: str) -> Parts | None:
    """Of a hub id; None where the name says nothing."""
    name = pretrained.rpartition("/")[2]
    return next((parts for start, parts in KNOWN.items() if name.startswith(start)), None)
