"""The emoji world's AutoencoderKL: 64x64 pictures to 4x16x16 latents, trained on fresh scenes."""

import random
from pathlib import Path

import torch
from diffusers import AutoencoderKL  # pyright: ignore[reportPrivateImportUsage]
from jaxtyping import Float
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from .scenes import draw, random_caption

BATCH = 16
KL_WEIGHT = 2e-4
SECOND_SERIES = 5_000_000
"""Where the decoder's own scenes begin."""

HELD_OUT = 10_000_000
"""Scenes whose number is at least this are never trained on."""


def build(channels: int = 4, **config: float) -> AutoencoderKL:
    """0.92 M parameters with 4 latent channels; `config` goes to AutoencoderKL.

    The posterior starts narrow: a sigma near 1 drowns the first 500 steps in noise.
    """
    vae = AutoencoderKL(
        block_out_channels=(32, 64, 64),  # pyright: ignore[reportArgumentType]
        down_block_types=("DownEncoderBlock2D",) * 3,  # pyright: ignore[reportArgumentType]
        up_block_types=("UpDecoderBlock2D",) * 3,  # pyright: ignore[reportArgumentType]
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=channels,
        mid_block_add_attention=False,
        sample_size=64,
        **config,  # pyright: ignore[reportArgumentType]
    )
    with torch.no_grad():
        vae.get_parameter("quant_conv.bias")[channels:] = -6.0
    return vae


def captions(first: int, count: int) -> list[str]:
    """Captions of `count` scenes of the endless series, from number `first` on."""
    return [
        random_caption(random.Random(f"caption {number}")) for number in range(first, first + count)
    ]


def scenes(first: int, count: int) -> tuple[list[str], Float[Tensor, "B 3 64 64"]]:
    """Captions and pictures in [-1, 1] of `count` scenes of the series, from number `first` on."""
    texts = captions(first, count)
    pictures = [pil_to_tensor(draw(text, first + i)) for i, text in enumerate(texts)]
    return texts, torch.stack(pictures).float() / 127.5 - 1


def gradients(x: Tensor) -> Tensor:
    """Differences of neighboring pixels, both ways, flattened: what makes an edge an edge."""
    return torch.cat([x.diff(dim=2).flatten(1), x.diff(dim=3).flatten(1)], dim=1)


def reconstruction_loss(difference: Tensor) -> Tensor:
    """L1 + 0.5 MSE + 0.25 L1 of the image gradient."""
    edges = gradients(difference).abs().mean()
    return difference.abs().mean() + 0.5 * difference.square().mean() + 0.25 * edges


class Training:
    """The whole autoencoder: reconstruction, and a small KL to a unit Gaussian."""

    steps, lr, ema_decay = 4_000, 1.2e-3, 0.995

    def __init__(self, device: torch.device, weights: Path, work: Path) -> None:
        self.module = build().to(device)  # pyright: ignore[reportArgumentType]

    def loss(self, step: int) -> Tensor:
        x = scenes(step * BATCH, BATCH)[1].to(self.module.device)
        with torch.autocast(x.device.type, torch.bfloat16):
            posterior = self.module.encode(x, return_dict=False)[0]
            y = self.module.decode(posterior.sample(), return_dict=False)[0].float()  # pyright: ignore[reportArgumentType]
        return (
            reconstruction_loss(y - x)
            + KL_WEIGHT * posterior.kl().mean() / posterior.mean[0].numel()
        )

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Peak signal-to-noise ratio in dB over 256 held-out scenes (peak 2)."""
        x = scenes(HELD_OUT, 256)[1].to(self.module.device)
        error = torch.stack(
            [(self.module(part).sample - part).square().mean() for part in x.split(32)]
        ).mean()
        return {"psnr_db": (10 * torch.log10(4 / error)).item()}

    @torch.no_grad()
    def save(self, folder: Path) -> None:
        """With `scaling_factor` set for latents of unit variance, as Stable Diffusion's have."""
        x = scenes(HELD_OUT, 256)[1].to(self.module.device)
        means = [self.module.encode(part, return_dict=False)[0].mean for part in x.split(32)]
        std = torch.cat(means).std()
        self.module.register_to_config(scaling_factor=round(1 / std.item(), 4))
        self.module.half().save_pretrained(folder / "pipeline" / "vae")
        self.module.float()


class DecoderTraining(Training):
    """The decoder alone: latents, and whatever was trained on them, stay valid."""

    steps, lr, ema_decay = 1_750, 6e-4, 0.998

    def __init__(self, device: torch.device, weights: Path, work: Path) -> None:
        vae = AutoencoderKL.from_pretrained(weights / "pipeline" / "vae")
        self.module = vae.to(device, torch.float32)  # pyright: ignore[reportArgumentType]
        for part in ("encoder", "quant_conv"):
            self.module.get_submodule(part).requires_grad_(False)

    def loss(self, step: int) -> Tensor:
        x = scenes(SECOND_SERIES + step * BATCH, BATCH)[1].to(self.module.device)
        with torch.autocast(x.device.type, torch.bfloat16):
            with torch.no_grad():
                latents = self.module.encode(x, return_dict=False)[0].sample()
            y = self.module.decode(latents, return_dict=False)[0].float()  # pyright: ignore[reportArgumentType]
        return reconstruction_loss(y - x)

    def save(self, folder: Path) -> None:
        """With the scaling factor that the latents already have."""
        self.module.half().save_pretrained(folder / "pipeline" / "vae")
        self.module.float()
