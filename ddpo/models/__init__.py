"""The one protocol of all model families. A model is one file here, or in a plugin's `models` folder."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ddpo import plugins
from ddpo.samplers import NoiseSchedule

__path__ = [*__path__, *plugins.folders("models")[1:]]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Policy(Protocol):
    """A diffusion model to sample from, to score and to train. N is any number of (sample, step) pairs.

    latent_shape   (C, H, W)
    image_size     height and width of its pictures, in pixels
    num_timesteps  of its training
    half_precision whether the network computes in bf16 or fp16
    """

    device: torch.device
    latent_shape: tuple[int, int, int]
    image_size: int
    num_timesteps: int
    half_precision: bool

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """What is trained, by name, in a fixed order."""
        ...

    def schedule(self, num_steps: int, sampler: str) -> NoiseSchedule:
        """The noise levels that `num_steps` sampling steps visit."""
        ...

    def prepare(self, prompts: Sequence[str]) -> None:
        """Encode prompts that were not seen before; each distinct prompt is encoded once."""
        ...

    def predict(
        self,
        latents: Float[Tensor, "N C H W"],
        timesteps: Int[Tensor, " N"],
        prompts: Sequence[str],
        guidance_scale: float,
    ) -> Float[Tensor, "N C H W"]:
        """The network's output under guidance, in fp32; the same arithmetic with and without grad."""
        ...

    def noised(
        self, latents: Float[Tensor, "N C H W"], noise: Float[Tensor, "N C H W"], timesteps: Int[Tensor, " N"]
    ) -> tuple[Float[Tensor, "N C H W"], Float[Tensor, "N C H W"]]:
        """Clean latents noised to their timesteps, and what the network should then predict."""
        ...

    def encode(self, images: Float[Tensor, "N 3 height width"]) -> Float[Tensor, "N C H W"]:
        """Latents of pictures in [0, 1]: the mode of the autoencoder's posterior, fp32."""
        ...

    def decode(self, latents: Float[Tensor, "N C H W"]) -> Float[Tensor, "N 3 height width"]:
        """Pictures in [0, 1], fp32."""
        ...

    def reference(self) -> AbstractContextManager[None]:
        """Within it, the model is what it was before training."""
        ...

    def save(self, folder: Path) -> None:
        """Write what was trained in the format that diffusers loads."""
        ...
