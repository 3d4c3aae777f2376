"""A step as a Gaussian, and the tables of coefficients that make up a Gaussian sampler."""

import math
from dataclasses import dataclass, fields
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ddpo.samplers._noise import NoiseSchedule

Reduction = Literal["mean", "sum"]


@dataclass(frozen=True)
class Gaussian:
    """N(mean, std^2) for each of N states, independent over latent dimensions.

    Log-probabilities and divergences are reduced in fp64: a "mean" (nats per latent dimension) or a
    "sum" (nats) over the dimensions. Where std is 0 there is no density; the caller leaves such
    steps out.
    """

    mean: Float[Tensor, "N *dims"]
    std: Float[Tensor, " N"]

    def sample(self, noise: Float[Tensor, "N *dims"]) -> Float[Tensor, "N *dims"]:
        """mean + std * noise; where std is 0, the mean."""
        return self.mean + _column(self.std, self.mean) * noise

    def log_prob(
        self, x: Float[Tensor, "N *dims"], reduction: Reduction = "mean"
    ) -> Float[Tensor, " N"]:
        """log N(x; mean, std^2)."""
        std = self.std.double()[:, None]
        error = (x - self.mean).flatten(1).double() / std
        return _reduce(-0.5 * error.square() - std.log() - 0.5 * math.log(2 * math.pi), reduction)

    def kl(self, other: "Gaussian", reduction: Reduction = "mean") -> Float[Tensor, " N"]:
        """KL(self || other) = |mean - other.mean|^2 / (2 std^2), for two steps of one std."""
        apart = (self.mean - other.mean).flatten(1).double() / self.std.double()[:, None]
        return _reduce(0.5 * apart.square(), reduction)


@dataclass(frozen=True)
class Steps:
    """The T steps of a Gaussian sampler as tables.

    `stochastic` is False where std is 0: no density there.
    """

    timesteps: Int[Tensor, " T"]
    x_coefficient: Float[Tensor, " T"]
    output_coefficient: Float[Tensor, " T"]
    std: Float[Tensor, " T"]
    stochastic: Bool[Tensor, " T"]

    def __len__(self) -> int:
        return len(self.timesteps)

    def to(self, device: torch.device) -> "Steps":
        return Steps(*(getattr(self, field.name).to(device) for field in fields(self)))

    def step(
        self,
        index: Int[Tensor, " N"],
        x: Float[Tensor, "N *dims"],
        output: Float[Tensor, "N *dims"],
    ) -> Gaussian:
        """The distribution of x_s, given x_t and the (guided) output at step `index`.

        Its mean is fp32.
        """
        of_x, of_output = self.x_coefficient[index], self.output_coefficient[index]
        mean = _column(of_x, x) * x.float() + _column(of_output, x) * output.float()
        return Gaussian(mean, self.std[index])


def gaussian_steps(
    schedule: NoiseSchedule,
    timesteps: Int[Tensor, " T"],
    *,
    x0: Float[Tensor, " T"],
    epsilon: Float[Tensor, " T"],
    x: Float[Tensor, " T"],
    variance: Float[Tensor, " T"],
) -> Steps:
    """The steps with mean = x0 * x_0 + epsilon * epsilon_t + x * x_t, all coefficients in fp64.

    Where the network predicts x_0 or epsilon itself, or v or a velocity, from which x_0 and epsilon
    follow, this is linear in x_t and in the output. Raises ValueError for any other prediction.
    """
    signal, noise = schedule.levels(timesteps)
    if schedule.prediction == "epsilon":  # x_0 = (x_t - noise * m) / signal, epsilon = m
        x_coefficient, output = x + x0 / signal, epsilon - x0 * noise / signal
    # x_0 = signal x_t - noise m, epsilon = noise x_t + signal m
    elif schedule.prediction == "v_prediction":
        x_coefficient, output = x + x0 * signal + epsilon * noise, epsilon * signal - x0 * noise
    elif schedule.prediction == "sample":  # x_0 = m, epsilon = (x_t - signal * m) / noise
        x_coefficient, output = x + epsilon / noise, x0 - epsilon * signal / noise
    # m = epsilon - x_0, so x_t = (signal + noise) x_0 + noise m
    elif schedule.prediction == "velocity":
        both = signal + noise
        x_coefficient, output = x + (x0 + epsilon) / both, (epsilon * signal - x0 * noise) / both
    else:
        raise ValueError(f"a model that predicts {schedule.prediction!r} is not supported")
    std = variance.clamp(min=0).sqrt()
    return Steps(timesteps.long(), x_coefficient.float(), output.float(), std.float(), std > 0)


def _reduce(per_dimension: Float[Tensor, "N D"], reduction: Reduction) -> Float[Tensor, " N"]:
    return per_dimension.mean(1) if reduction == "mean" else per_dimension.sum(1)


def _column(values: Float[Tensor, " N"], like: Float[Tensor, "N *dims"]) -> Tensor:
    return values.view(-1, *[1] * (like.dim() - 1))
