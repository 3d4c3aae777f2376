"""Multistep sampling of latent consistency models."""

import numpy as np
import torch

from ddpo.errors import UserError
from ddpo.plugins.ranges import PositiveInt
from ddpo.samplers import NoiseSchedule, Steps, gaussian_steps, require

SIGMA_DATA, TIMESTEP_SCALING = 0.5, 10.0
"""Of the boundary condition, as models are distilled with it."""


def lcm(schedule: NoiseSchedule, num_steps: int, *, original_steps: PositiveInt = 50) -> Steps:
    """Multistep consistency sampling (Luo et al. 2023, arXiv 2310.04378, algorithm 3).

    f    = c_skip x_t + c_out x_0,    tau = 10 t
    with c_skip = 0.25 / (tau^2 + 0.25) and c_out = tau / sqrt(tau^2 + 0.25)
    x_s ~ N(signal_s f, noise_s^2)

    Each step predicts the picture f and noises it to the timestep of the next; the last one keeps
    it and has no density. For models that were distilled so, or with a LoRA that was (model.loras).

    `original_steps` is the number of timesteps of the distillation, of which `num_steps` are
    visited, evenly spaced from the last; 50 in all published models.
    """
    require("variance-preserving", schedule, "lcm")
    schedule.timesteps(num_steps)  # refuses more steps than timesteps
    if not num_steps <= original_steps <= len(schedule):
        raise UserError(
            f"sampler.original_steps: {original_steps} is not between sampler.num_steps, "
            f"{num_steps}, and the model's {len(schedule)}"
        )
    distilled = np.arange(original_steps, 0, -1) * (len(schedule) // original_steps) - 1
    places = np.floor(np.linspace(0, original_steps, num_steps, endpoint=False)).astype(int)
    timesteps = torch.from_numpy(distilled[places])
    scaled = TIMESTEP_SCALING * timesteps.double()
    total = scaled.square() + SIGMA_DATA**2
    signal, noise = schedule.levels(timesteps)
    signal_next = torch.cat([signal[1:], signal.new_ones(1)])
    noise_next = torch.cat([noise[1:], noise.new_zeros(1)])
    return gaussian_steps(
        schedule,
        timesteps,
        x0=signal_next * scaled / total.sqrt(),
        epsilon=torch.zeros_like(signal),
        x=signal_next * SIGMA_DATA**2 / total,
        variance=noise_next.square(),
    )
