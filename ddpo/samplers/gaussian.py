"""A step as a Gaussian: its mean, a sample of it, log-probability and divergence."""

import math
from dataclasses import dataclass, fields
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Reduction = Literal["mean", "sum"]


@dataclass(frozen=True)
class Steps:
    """The T steps of a sampler as tables. `stochastic` is False where std is 0: no density there."""

    timesteps: Int[Tensor, " T"]
    x_coefficient: Float[Tensor, " T"]
    output_coefficient: Float[Tensor, " T"]
    std: Float[Tensor, " T"]
    stochastic: Bool[Tensor, " T"]

    def __len__(self) -> int:
        return len(self.timesteps)

    def to(self, device: torch.device) -> "Steps":
        return Steps(*(getattr(self, field.name).to(device) for field in fields(self)))


def mean(
    steps: Steps, index: Int[Tensor, " B"], x: Float[Tensor, "B *dims"], output: Float[Tensor, "B *dims"]
) -> Float[Tensor, "B *dims"]:
    """Mean of x_s given x_t and the (guided) network output at step `index`, in fp32."""
    of_x, of_output = steps.x_coefficient[index], steps.output_coefficient[index]
    return _column(of_x, x) * x.float() + _column(of_output, x) * output.float()


def sample(
    mean: Float[Tensor, "B *dims"], std: Float[Tensor, " B"], noise: Float[Tensor, "B *dims"]
) -> Float[Tensor, "B *dims"]:
    """x_s = mean + std * noise; where std is 0, the mean."""
    return mean + _column(std, mean) * noise


def log_prob(
    x: Float[Tensor, "B *dims"],
    mean: Float[Tensor, "B *dims"],
    std: Float[Tensor, " B"],
    reduction: Reduction = "mean",
) -> Float[Tensor, " B"]:
    """log N(x; mean, std^2), a mean (nats per latent dimension) or a sum (nats) over the dimensions.

    Reduced in fp64. `std` must be positive: steps without noise have no density and are masked by the caller.
    """
    std = std.double()
    error = (x - mean).flatten(1).double() / std[:, None]
    per_dimension = -0.5 * error.square() - std.log()[:, None] - 0.5 * math.log(2 * math.pi)
    return per_dimension.mean(1) if reduction == "mean" else per_dimension.sum(1)


def kl(
    mean: Float[Tensor, "B *dims"],
    mean_ref: Float[Tensor, "B *dims"],
    std: Float[Tensor, " B"],
    reduction: Reduction = "mean",
) -> Float[Tensor, " B"]:
    """KL(N(mean, std^2) || N(mean_ref, std^2)) = ||mean - mean_ref||^2 / (2 std^2), as in `log_prob`."""
    squared = 0.5 * ((mean - mean_ref).flatten(1).double() / std.double()[:, None]).square()
    return squared.mean(1) if reduction == "mean" else squared.sum(1)


def _column(values: Float[Tensor, " B"], like: Float[Tensor, "B *dims"]) -> Tensor:
    return values.view(-1, *[1] * (like.dim() - 1))
