"""What a rollout leaves behind: latents, log-probabilities and pictures of one rank's samples."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ddpo.prompts import Prompt


@dataclass
class Trajectory:
    """B denoising trajectories of T steps.

    samples    B numbers of these samples within the iteration (0 <= number < global batch), in
               order
    prompts    B of them
    latents    (B, T + 1, C, H, W) in fp32: x_T first, x_0 last
    logp_old   (B, T), mean over latent dimensions, 0 at steps without a density
    logp_ref   likewise under the reference, if an objective needs it
    output_ref (B, T, C, H, W) the network's output under the reference, likewise
    images     (B, 3, H, W) in [0, 1]
    """

    samples: list[int]
    prompts: list[Prompt]
    latents: Float[Tensor, "B T1 C H W"]
    logp_old: Float[Tensor, "B T"]
    images: Float[Tensor, "B 3 height width"]
    logp_ref: Float[Tensor, "B T"] | None = None
    output_ref: Float[Tensor, "B T C H W"] | None = None


def join(parts: Sequence[Trajectory]) -> Trajectory:
    """Several chunks as one, without their images, which are scored and forgotten."""

    def together(name: str) -> Tensor | None:
        values = [getattr(part, name) for part in parts if getattr(part, name) is not None]
        return torch.cat(values) if values else None

    return Trajectory(
        samples=[sample for part in parts for sample in part.samples],
        prompts=[prompt for part in parts for prompt in part.prompts],
        latents=torch.cat([part.latents for part in parts]),
        logp_old=torch.cat([part.logp_old for part in parts]),
        images=parts[0].images[:0],
        logp_ref=together("logp_ref"),
        output_ref=together("output_ref"),
    )
