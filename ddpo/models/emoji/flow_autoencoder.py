"""The flow model's AutoencoderKL: 64x64 pictures to 16x16x16 latents.

Four times as many numbers as `autoencoder.py` has, for sharper pictures, and unit variance in every
channel.
"""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL  # pyright: ignore[reportPrivateImportUsage]
from jaxtyping import Float, UInt8
from torch import Tensor

from . import autoencoder
from .album import album
from .autoencoder import HELD_OUT, SECOND_SERIES, gradients, scenes

BATCH, DECODER_BATCH = 64, 8
CHANNELS = 16
KL_WEIGHT = 3e-4


def build() -> AutoencoderKL:
    """0.95 M parameters, those of `autoencoder.build` with more channels.

    There is nothing to scale or to shift.
    """
    return autoencoder.build(CHANNELS, scaling_factor=1.0, shift_factor=0.0)


def trained(weights: Path) -> AutoencoderKL:
    """The one that was saved below `weights`, in fp32 (its config does not know from where)."""
    vae = build()
    saved = AutoencoderKL.from_pretrained(weights / "flow" / "vae", torch_dtype=torch.float32)
    vae.load_state_dict(saved.state_dict())
    return vae


def pictures(count: int, folder: Path) -> UInt8[Tensor, "N 3 64 64"]:
    """The first `count` scenes of the series, from the album beside the stage's own folder."""
    files = album(count, folder)
    return torch.cat([torch.from_numpy(np.load(file)) for file in files])


def reconstruction_loss(difference: Tensor) -> Tensor:
    """L1 + 2 MSE + 0.25 L1 of the image gradient."""
    edges = gradients(difference).abs().mean()
    return difference.abs().mean() + 2 * difference.square().mean() + 0.25 * edges


@torch.no_grad()
def whiten(vae: AutoencoderKL, x: Float[Tensor, "B 3 64 64"]) -> None:
    """Give every latent channel mean 0 and variance 1 over `x`, and decode to the same pictures.

    The affine map goes into the 1x1 convolutions on both sides of the latents.
    """
    samples = torch.cat([vae.encode(part, return_dict=False)[0].sample() for part in x.split(64)])
    mean, std = samples.mean((0, 2, 3)), samples.std((0, 2, 3))
    weight, bias = vae.get_parameter("quant_conv.weight"), vae.get_parameter("quant_conv.bias")
    weight[:CHANNELS] /= std.view(-1, 1, 1, 1)
    bias[:CHANNELS] = (bias[:CHANNELS] - mean) / std
    bias[CHANNELS:] -= 2 * std.log()
    weight = vae.get_parameter("post_quant_conv.weight")
    bias = vae.get_parameter("post_quant_conv.bias")
    bias += weight[:, :, 0, 0] @ mean
    weight *= std.view(1, -1, 1, 1)


class Training:
    """Reconstruction, and a small KL that keeps the latents near a Gaussian; random flips."""

    steps, lr, ema_decay = 2_704, 2e-3, 0.999
    scene_count = 12_000

    def __init__(self, device: torch.device, weights: Path, work: Path) -> None:
        self.module = build().to(device, memory_format=torch.channels_last)  # pyright: ignore[reportArgumentType, reportCallIssue]
        self.device, self.autocast = device, device.type == "cuda"
        self.pictures = pictures(self.scene_count, work.parent / "album").to(device)

    def loss(self, step: int) -> Tensor:
        device = self.device
        rows = torch.randint(len(self.pictures), (BATCH,), device=device)
        flips = torch.rand(BATCH, 1, 1, 1, device=device) < 0.5
        x = self.pictures[rows].float() / 127.5 - 1
        x = torch.where(flips, x.flip(3), x).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.autocast):
            posterior = self.module.encode(x, return_dict=False)[0]
            y = self.module.decode(posterior.sample(), return_dict=False)[0].float()  # pyright: ignore[reportArgumentType]
        return (
            reconstruction_loss(y - x)
            + KL_WEIGHT * posterior.kl().mean() / posterior.mean[0].numel()
        )

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Peak signal-to-noise ratio in dB over 256 held-out scenes (peak 2).

        With it goes the posterior's mean spread.
        """
        x = scenes(HELD_OUT, 256)[1].to(self.device)
        posteriors = [self.module.encode(part, return_dict=False)[0] for part in x.split(32)]
        decoded = torch.cat([self.module.decode(each.mean).sample for each in posteriors])  # pyright: ignore[reportArgumentType, reportAttributeAccessIssue]
        noise = torch.cat([each.std for each in posteriors]).mean()
        error = (decoded - x).square().mean()
        return {"psnr_db": (10 * torch.log10(4 / error)).item(), "posterior_std": noise.item()}

    def load(self, folder: Path) -> None:
        self.module.load_state_dict(trained(folder).state_dict())

    @torch.no_grad()
    def save(self, folder: Path) -> None:
        """With latents of unit variance in each channel: nothing is left to scale or shift."""
        x = scenes(HELD_OUT, 256)[1].to(self.device)
        whiten(self.module, x)
        self.module.half().save_pretrained(folder / "flow" / "vae")
        self.module.float()


class DecoderTraining(Training):
    """The decoder alone: latents, and the flow model that was trained on them, stay valid.

    It minimizes the squared error alone: the decoder has learned from edges and absolute errors
    before, and only a fifth of that loss was squared error.
    """

    steps, lr, ema_decay = 2_400, 1e-3, 0.99

    def __init__(self, device: torch.device, weights: Path, work: Path) -> None:
        self.module = trained(weights).to(device, memory_format=torch.channels_last)  # pyright: ignore[reportArgumentType, reportCallIssue]
        self.device, self.autocast = device, device.type == "cuda"
        for part in ("encoder", "quant_conv"):
            self.module.get_submodule(part).requires_grad_(False)

    def loss(self, step: int) -> Tensor:
        """On scenes that are drawn as it goes: each is seen once."""
        x = scenes(SECOND_SERIES + step * DECODER_BATCH, DECODER_BATCH)[1].to(self.device)
        x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            with torch.no_grad():
                latents = self.module.encode(x, return_dict=False)[0].mean
            y = self.module.decode(latents, return_dict=False)[0].float()  # pyright: ignore[reportArgumentType]
        return 10 * (y - x).square().mean()

    def save(self, folder: Path) -> None:
        """With the latents that it was loaded with."""
        self.module.half().save_pretrained(folder / "flow" / "vae")
        self.module.float()
