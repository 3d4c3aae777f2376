"""Euler's steps along a rectified flow, without noise."""

import torch

from ddpo.samplers import NoiseSchedule, Steps, gaussian_steps, require


def flow_euler(schedule: NoiseSchedule, num_steps: int) -> Steps:
    """Euler's method for the probability-flow ODE of a rectified flow (Liu et al. 2023).

    x_s = x_t + (s - t) v = (1 - s) x_0 + s epsilon,    v = epsilon - x_0

    with t the noise level of a step and s that of the next one, 0 after the last. No step adds
    noise, so none has a density: for evaluation, and for objectives that need none (rwr, dpo, nft).
    """
    require("rectified-flow", schedule, "flow_euler")
    timesteps = schedule.timesteps(num_steps)
    signal, noise = schedule.levels(torch.cat([timesteps[1:], timesteps.new_full((1,), -1)]))
    nothing = torch.zeros_like(signal)
    return gaussian_steps(
        schedule, timesteps, x0=signal, epsilon=noise, x=nothing, variance=nothing
    )
