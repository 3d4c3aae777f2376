"""Euler's ancestral steps, as few-step models are sampled with."""

import torch

from ddpo.errors import UserError
from ddpo.plugins.ranges import ZeroToOne
from ddpo.samplers import NoiseSchedule, Steps, deterministic_with, gaussian_steps, require


@deterministic_with(eta=0.0)
def euler_ancestral(schedule: NoiseSchedule, num_steps: int, *, eta: ZeroToOne = 1.0) -> Steps:
    """Ancestral sampling with Euler's method (k-diffusion), stochastic for `eta` > 0.

    For y = x / signal = x_0 + sigma epsilon, with sigma = noise / signal, from sigma_t to sigma_s:

    sigma_up   = eta sqrt(sigma_s^2 (sigma_t^2 - sigma_s^2) / sigma_t^2)
    sigma_down = sqrt(sigma_s^2 - sigma_up^2)
    y_s ~ N(y_t + (sigma_down - sigma_t) (y_t - x_0) / sigma_t, sigma_up^2)
        = N(x_0 + sigma_down epsilon, sigma_up^2)

    of which x_s = signal_s y_s. Each step leads to the timestep of the next; the last one reaches
    the data, adds no noise and has no density. With `eta` 1 all others are DDPM's posterior.

    Differs: where timesteps are spaced to the last, diffusers begins at y = sigma_T z, which is
    0.2 % less than the unit variance of this x_T. Raises UserError for `eta` outside [0, 1].
    """
    require("variance-preserving", schedule, "euler_ancestral")
    if not 0 <= eta <= 1:
        raise UserError(f"sampler.eta: {eta} is outside [0, 1]")
    timesteps = schedule.timesteps(num_steps)
    signal, noise = schedule.levels(timesteps)
    signal_next = torch.cat([signal[1:], signal.new_ones(1)])
    noise_next = torch.cat([noise[1:], noise.new_zeros(1)])
    shrinking = noise_next / signal_next * (signal / noise)  # sigma_s / sigma_t, also at signal 0
    variance = eta**2 * noise_next.square() * (1 - shrinking.square())  # (signal_s sigma_up)^2
    return gaussian_steps(
        schedule,
        timesteps,
        x0=signal_next,
        epsilon=(noise_next.square() - variance).clamp(min=0).sqrt(),
        x=torch.zeros_like(signal),
        variance=variance,
    )
