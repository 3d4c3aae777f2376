"""DDIM, with noise."""

import torch

from ddpo.errors import UserError
from ddpo.plugins.ranges import ZeroToOne
from ddpo.samplers import NoiseSchedule, Steps, deterministic_with, gaussian_steps, require


@deterministic_with(eta=0.0)
def ddim(schedule: NoiseSchedule, num_steps: int, *, eta: ZeroToOne = 1.0) -> Steps:
    """DDIM (Song et al. 2021, equations 12 and 16), stochastic for `eta` > 0.

    `eta` 1 is the DDPM posterior.

    std^2 = eta^2 (1 - a_s) / (1 - a_t) (1 - a_t / a_s)
    mean  = sqrt(a_s) x_0 + sqrt(1 - a_s - std^2) epsilon

    with a = signal^2 = 1 - noise^2. Each step goes on by the same number of timesteps, the last one
    to the schedule's final level. Raises UserError for `eta` outside [0, 1].
    """
    if not 0 <= eta <= 1:
        raise UserError(f"sampler.eta: {eta} is outside [0, 1]")
    require("variance-preserving", schedule, "ddim")
    timesteps = schedule.timesteps(num_steps)
    (signal, noise), (signal_next, noise_next) = (
        schedule.levels(t) for t in (timesteps, timesteps - len(schedule) // num_steps)
    )
    variance = eta**2 * (noise_next / noise).square() * (1 - (signal / signal_next).square())
    direction = (noise_next.square() - variance).clamp(min=0).sqrt()
    nothing = torch.zeros_like(signal)
    return gaussian_steps(
        schedule, timesteps, x0=signal_next, epsilon=direction, x=nothing, variance=variance
    )
