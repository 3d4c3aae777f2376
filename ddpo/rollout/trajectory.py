"""What a rollout leaves behind: states, log-probabilities and samples of one rank."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from ddpo.parallel import ranks
from ddpo.prompts import Prompt


@dataclass
class Trajectory:
    """B denoising trajectories of T steps.

    samples    B numbers of these samples within the iteration (0 <= number < global batch), in
               order
    prompts    B of them
    latents    (B, T + 1, ...) x_T first, x_0 last: (C, H, W) in fp32, or L letter numbers
    logp_old   (B, T), mean over latent dimensions, 0 at steps without a density
    logp_ref   likewise under the reference, if an objective needs it
    output_ref (B, T, ...) the network's output under the reference, likewise
    output_old likewise under the policy that sampled
    images     (B, ...) what the policy makes: (3, H, W) in [0, 1], or what its medium says
    outputs    by row, for those that were asked for: (T, ...) the network's output at each step
    """

    samples: list[int]
    prompts: list[Prompt]
    latents: Shaped[Tensor, "B T1 *state"]
    logp_old: Float[Tensor, "B T"]
    images: Float[Tensor, "B *sample"]
    logp_ref: Float[Tensor, "B T"] | None = None
    output_ref: Float[Tensor, "B T *output"] | None = None
    output_old: Float[Tensor, "B T *output"] | None = None
    outputs: dict[int, Float[Tensor, "T *output"]] = field(default_factory=dict)


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
        output_old=together("output_old"),
    )


def of_all_ranks(matrix: Float[Tensor, "b T"], device: torch.device) -> Float[Tensor, "B T"]:
    """Each rank's rows, in the order of the samples: ranks hold contiguous blocks."""
    return torch.tensor(ranks.gather(matrix.tolist()), dtype=matrix.dtype, device=device)
