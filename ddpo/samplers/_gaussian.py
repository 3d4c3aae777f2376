"""A step as a Gaussian, and the tables of coefficients that make up a Gaussian sampler."""

import math
from dataclasses import dataclass, fields
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int, Real
from torch import Tensor

from ddpo.errors import UserError
from ddpo.samplers._noise import NoiseSchedule

Reduction = Literal["mean", "sum"]


@dataclass(frozen=True)
class Gaussian:
    """N(mean, std^2) for each of N states, independent over latent dimensions.

    Log-probabilities and divergences are reduced in fp64: a "mean" (nats per latent dimension) or a
    "sum" (nats) over the dimensions. Where std is 0 there is no density; the caller leaves such
    steps out.

    scored_std   takes the place of std in log_prob and kl, where a sampler weights its steps
                 otherwise than by their density
    """

    mean: Float[Tensor, "N *dims"]
    std: Float[Tensor, " N"]
    scored_std: Float[Tensor, " N"] | None = None

    @property
    def _scored(self) -> Float[Tensor, "N 1"]:
        return (self.std if self.scored_std is None else self.scored_std).double()[:, None]

    def sample(self, noise: Float[Tensor, "N *dims"]) -> Float[Tensor, "N *dims"]:
        """mean + std * noise; where std is 0, the mean."""
        return self.mean + _column(self.std, self.mean) * noise

    def rsample(self, noise: Float[Tensor, "N *dims"]) -> Float[Tensor, "N *dims"]:
        """A sample whose gradient reaches the mean (the reparameterized one): `sample` has it."""
        return self.sample(noise)

    def log_prob(
        self, x: Float[Tensor, "N *dims"], reduction: Reduction = "mean"
    ) -> Float[Tensor, " N"]:
        """log N(x; mean, std^2)."""
        std = self._scored
        error = (x - self.mean).flatten(1).double() / std
        return _reduce(-0.5 * error.square() - std.log() - 0.5 * math.log(2 * math.pi), reduction)

    def kl(self, other: "Gaussian", reduction: Reduction = "mean") -> Float[Tensor, " N"]:
        """KL(self || other) = |mean - other.mean|^2 / (2 std^2), for two steps of one std."""
        apart = (self.mean - other.mean).flatten(1).double() / self._scored
        return _reduce(0.5 * apart.square(), reduction)


@dataclass(frozen=True)
class Steps:
    """The T steps of a Gaussian sampler as tables.

    `stochastic` is False where std is 0: no density there. `scored_std` is what log-probabilities
    and divergences are taken with: std, unless the sampler weights its steps otherwise.
    """

    timesteps: Real[Tensor, " T"]
    x_coefficient: Float[Tensor, " T"]
    output_coefficient: Float[Tensor, " T"]
    std: Float[Tensor, " T"]
    stochastic: Bool[Tensor, " T"]
    scored_std: Float[Tensor, " T"]

    def __len__(self) -> int:
        return len(self.timesteps)

    def to(self, device: torch.device) -> "Steps":
        return Steps(*(getattr(self, field.name).to(device) for field in fields(self)))

    def noise_shape(self, latent_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Of the standard normal numbers of one state."""
        return latent_shape

    def relaxed(self, temperature: float | None, straight_through: bool) -> "Steps":
        """The steps with differentiable samples: these have them as they are."""
        return self

    def start(self, noise: Float[Tensor, "N *dims"]) -> Float[Tensor, "N *dims"]:
        """The state that the first step begins with: noise alone."""
        return noise

    def check(self, name: str) -> None:
        """Raises UserError where a coefficient is not finite, of the sampler of that name."""
        tables = torch.stack([self.x_coefficient, self.output_coefficient, self.std])
        if not tables.isfinite().all():
            step = int((~tables.isfinite().all(0)).nonzero()[0])
            raise UserError(
                f"sampler {name}: the coefficients of step {step} are not finite; "
                "look at its options, and at divisions by a signal or noise of 0"
            )

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
        return Gaussian(mean, self.std[index], self.scored_std[index])


def gaussian_steps(
    schedule: NoiseSchedule,
    timesteps: Real[Tensor, " T"],
    *,
    x0: Float[Tensor, " T"],
    epsilon: Float[Tensor, " T"],
    x: Float[Tensor, " T"],
    variance: Float[Tensor, " T"],
    scored_std: float | None = None,
) -> Steps:
    """The steps with mean = x0 * x_0 + epsilon * epsilon_t + x * x_t, all coefficients in fp64.

    Where the network predicts x_0 or epsilon itself, or v or a velocity, from which x_0 and epsilon
    follow, this is linear in x_t and in the output. `scored_std` is for all steps; None: each
    step's own, the square root of its variance. Raises ValueError for any other prediction.
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
    scored = std if scored_std is None else torch.full_like(std, scored_std)
    places = timesteps.float() if timesteps.is_floating_point() else timesteps.long()
    tables = (x_coefficient.float(), output.float(), std.float())
    return Steps(places, *tables, std > 0, scored.float())


def _reduce(per_dimension: Float[Tensor, "N D"], reduction: Reduction) -> Float[Tensor, " N"]:
    return per_dimension.mean(1) if reduction == "mean" else per_dimension.sum(1)


def _column(values: Float[Tensor, " N"], like: Float[Tensor, "N *dims"]) -> Tensor:
    return values.view(-1, *[1] * (like.dim() - 1))
