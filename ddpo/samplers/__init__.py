"""One reverse step of a diffusion model as a Gaussian: moments, sample, log-probability, KL divergence.

Without clipping, the mean of a DDIM or DDPM step is linear in the current latents and in the network's output
m,

    x_s ~ N(mean, std^2),    mean = x_coefficient * x_t + output_coefficient * m,

whatever the output means (epsilon, v or x_0). So a sampler is three tables, one row a step, and everything
else is the same few lines for all samplers. Tables are computed in fp64 and kept in fp32; index 0 is the
noisiest step.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Prediction = Literal["epsilon", "v_prediction", "sample"]
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


@dataclass(frozen=True)
class NoiseSchedule:
    """What a sampler needs of a model: its noise levels and the timesteps to visit.

    `alpha` and `alpha_next` are the cumulative signal levels (alpha-bar) before and after each step, in (0,
    1].
    """

    timesteps: Int[Tensor, " T"]
    alpha: Float[Tensor, " T"]
    alpha_next: Float[Tensor, " T"]
    prediction: Prediction


def ddim(schedule: NoiseSchedule, *, eta: float = 1.0) -> Steps:
    """DDIM (Song et al. 2021, equations 12 and 16), stochastic for `eta` > 0; `eta` 1 is the DDPM posterior.

    std^2 = eta^2 (1 - a_s) / (1 - a_t) (1 - a_t / a_s)
    mean  = sqrt(a_s) x_0 + sqrt(1 - a_s - std^2) epsilon

    Raises ValueError for `eta` outside [0, 1].
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"sampler.eta: {eta} is outside [0, 1]")
    a, a_next = schedule.alpha.double(), schedule.alpha_next.double()
    variance = eta**2 * (1 - a_next) / (1 - a) * (1 - a / a_next)
    direction = (1 - a_next - variance).clamp(min=0).sqrt()
    return _tables(schedule, x0=a_next.sqrt(), epsilon=direction, x=torch.zeros_like(a), variance=variance)


def ddpm(schedule: NoiseSchedule, *, variance: Literal["small", "large"] = "small") -> Steps:
    """DDPM ancestral sampling with strides (Ho et al. 2020, equation 7).

    alpha = a_t / a_s, beta = 1 - alpha
    mean  = sqrt(a_s) beta / (1 - a_t) x_0 + sqrt(alpha) (1 - a_s) / (1 - a_t) x_t
    std^2 = beta (1 - a_s) / (1 - a_t)  ("small", the posterior)   or   beta  ("large")

    The last step, which reaches the data, adds no noise and has no density, as in Ho et al., algorithm 2.
    """
    if variance not in ("small", "large"):
        raise ValueError(f"sampler.variance: {variance!r} is neither small nor large")
    a, a_next = schedule.alpha.double(), schedule.alpha_next.double()
    alpha, beta = a / a_next, 1 - a / a_next
    posterior = beta * (1 - a_next) / (1 - a)
    steps_variance = (posterior if variance == "small" else beta).clone()
    steps_variance[-1] = 0
    x0 = a_next.sqrt() * beta / (1 - a)
    x = alpha.sqrt() * (1 - a_next) / (1 - a)
    return _tables(schedule, x0=x0, epsilon=torch.zeros_like(a), x=x, variance=steps_variance)


SAMPLERS: dict[str, Callable[..., Steps]] = {"ddim": ddim, "ddpm": ddpm}


def _tables(schedule: NoiseSchedule, x0: Tensor, epsilon: Tensor, x: Tensor, variance: Tensor) -> Steps:
    """From mean = x0 * x_0 + epsilon * eps + x * x_t to coefficients of x_t and of the network's output."""
    signal, noise = schedule.alpha.double().sqrt(), (1 - schedule.alpha.double()).sqrt()
    if schedule.prediction == "epsilon":  # x_0 = (x_t - noise * m) / signal, eps = m
        x_coefficient, output = x + x0 / signal, epsilon - x0 * noise / signal
    elif schedule.prediction == "v_prediction":  # x_0 = signal x_t - noise m, eps = noise x_t + signal m
        x_coefficient, output = x + x0 * signal + epsilon * noise, epsilon * signal - x0 * noise
    elif schedule.prediction == "sample":  # x_0 = m, eps = (x_t - signal * m) / noise
        x_coefficient, output = x + epsilon / noise, x0 - epsilon * signal / noise
    else:
        raise ValueError(f"a model that predicts {schedule.prediction!r} is not supported")
    std = variance.clamp(min=0).sqrt()
    return Steps(schedule.timesteps.long(), x_coefficient.float(), output.float(), std.float(), std > 0)


@dataclass(frozen=True)
class Subset:
    """Which of the stochastic steps are trained on; all of them are sampled.

    fraction   a random share of them, drawn anew each iteration (DanceGRPO: 0.6)
    window     [first, end) of the sampling order, 0 the noisiest (MixGRPO)
    drop_last  so many steps at the end, whose small std makes log-probabilities steep
    """

    fraction: float = 1.0
    window: tuple[int, int] | None = None
    drop_last: int = 0

    def __call__(self, stochastic: Bool[Tensor, " T"], noise: torch.Generator) -> Bool[Tensor, " T"]:
        """Those of `stochastic` that are trained on; none where the window or drop_last leave none."""
        first, end = self.window or (0, len(stochastic))
        end = min(end, len(stochastic) - self.drop_last)
        places = [i for i in stochastic.nonzero().flatten().tolist() if first <= i < end]
        count = math.ceil(self.fraction * len(places) - 1e-9)
        chosen = torch.zeros_like(stochastic)
        chosen[[places[i] for i in torch.randperm(len(places), generator=noise)[:count].tolist()]] = True
        return chosen


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
