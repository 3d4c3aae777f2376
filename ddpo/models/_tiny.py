"""A random model of the true classes, for tests."""

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel  # pyright: ignore[reportPrivateImportUsage]
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer


def tiny(prediction_type: str = "epsilon", seed: int = 0) -> StableDiffusionPipeline:
    """A random pipeline of the true classes, under 1 MB: 16x16 pictures, 4x8x8 latents."""
    torch.manual_seed(seed)
    alphabet = _alphabet()
    tokenizer = CLIPTokenizer(vocab=alphabet, merges=[], model_max_length=24)
    text = CLIPTextConfig(
        vocab_size=len(alphabet),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=24,
        projection_dim=16,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=16,
        attention_head_dim=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 16),  # pyright: ignore[reportArgumentType]
        down_block_types=("DownEncoderBlock2D",) * 2,  # pyright: ignore[reportArgumentType]
        up_block_types=("UpDecoderBlock2D",) * 2,  # pyright: ignore[reportArgumentType]
        norm_num_groups=4,
        sample_size=16,
        latent_channels=4,
        mid_block_add_attention=False,
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,  # pyright: ignore[reportArgumentType]
    )
    return StableDiffusionPipeline(
        vae,
        CLIPTextModel(text),
        tokenizer,
        unet,
        scheduler,  # pyright: ignore[reportArgumentType]
        safety_checker=None,  # pyright: ignore[reportArgumentType]
        feature_extractor=None,  # pyright: ignore[reportArgumentType]
        requires_safety_checker=False,
    )


def _alphabet() -> dict[str, int]:
    """Special tokens, then every printable ASCII character, alone and at the end of a word."""
    characters = [chr(i) for i in range(33, 127)]
    ends = [f"{character}</w>" for character in characters]
    tokens = ["<|startoftext|>", "<|endoftext|>", *characters, *ends]
    return {token: i for i, token in enumerate(tokens)}
