"""The noise levels that a sampler visits, and what a network predicts at them."""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float, Int
from torch import Tensor

from ddpo.samplers.gaussian import Steps

Prediction = Literal["epsilon", "v_prediction", "sample"]


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


def tables(schedule: NoiseSchedule, x0: Tensor, epsilon: Tensor, x: Tensor, variance: Tensor) -> Steps:
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
