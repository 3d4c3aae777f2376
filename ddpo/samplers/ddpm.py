"""DDPM's ancestral sampling."""

from typing import Literal

import torch

from ddpo.errors import UserError
from ddpo.samplers import NoiseSchedule, Steps, gaussian_steps, require


def ddpm(
    schedule: NoiseSchedule, num_steps: int, *, variance: Literal["small", "large"] = "small"
) -> Steps:
    """DDPM ancestral sampling with strides (Ho et al. 2020, equation 7).

    alpha = a_t / a_s, beta = 1 - alpha
    mean  = sqrt(a_s) beta / (1 - a_t) x_0 + sqrt(alpha) (1 - a_s) / (1 - a_t) x_t
    std^2 = beta (1 - a_s) / (1 - a_t)  (`variance` "small", the posterior)   or   beta  ("large")

    with a = signal^2 = 1 - noise^2. Each step leads to the timestep of the next; the last one
    reaches the data, adds no noise and has no density, as in Ho et al., algorithm 2.
    """
    if variance not in ("small", "large"):
        raise UserError(f"sampler.variance: {variance!r} is neither small nor large")
    require("variance-preserving", schedule, "ddpm")
    timesteps = schedule.timesteps(num_steps)
    signal, noise = schedule.levels(timesteps)
    signal_next = torch.cat([signal[1:], signal.new_ones(1)])
    noise_next = torch.cat([noise[1:], noise.new_zeros(1)])
    alpha = (signal / signal_next).square()
    posterior = (1 - alpha) * (noise_next / noise).square()
    steps_variance = posterior if variance == "small" else 1 - alpha
    steps_variance[-1] = 0
    x0 = signal_next * (1 - alpha) / noise.square()
    x = alpha.sqrt() * (noise_next / noise).square()
    return gaussian_steps(
        schedule, timesteps, x0=x0, epsilon=torch.zeros_like(signal), x=x, variance=steps_variance
    )
