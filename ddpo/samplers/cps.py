"""Coefficient-preserving sampling of a rectified flow."""

import math

import torch

from ddpo.plugins.ranges import ZeroToOne
from ddpo.samplers import NoiseSchedule, Steps, deterministic_with, gaussian_steps, require

REWEIGHTED_STD = math.sqrt(0.5)
"""With it a log-probability is -|x - mean|^2 / D, and a constant."""


@deterministic_with(noise_level=0.0)
def cps(
    schedule: NoiseSchedule,
    num_steps: int,
    *,
    noise_level: ZeroToOne = 0.7,
    reweighted: bool = False,
) -> Steps:
    """Coefficient-preserving sampling: fresh noise in the place of old (Flow-CPS, 2509.05952).

    mean = (1 - s) x_0 + sqrt(s^2 - std^2) epsilon,    std = s sin(noise_level pi / 2)

    with s the noise level after a step, 0 after the last, which has no density. Signal and noise
    keep the shares 1 - s and s exactly, where the SDE's Euler-Maruyama steps have more noise.

    `noise_level` in [0, 1] is the share of fresh noise: 0 is Euler's ODE step, 1 replaces all.
    `reweighted` scores a step by -|x - mean|^2 / D in the place of its log-density, as the released
    code does: all steps weigh as if their std were sqrt(1/2), and clip ranges differ. Its KL is
    that of such steps.
    """
    require("rectified-flow", schedule, "cps")
    timesteps = schedule.timesteps(num_steps)
    signal, noise = schedule.levels(torch.cat([timesteps[1:], timesteps.new_full((1,), -1)]))
    angle = noise_level * math.pi / 2
    return gaussian_steps(
        schedule,
        timesteps,
        x0=signal,
        epsilon=noise * math.cos(angle),
        x=torch.zeros_like(signal),
        variance=(noise * math.sin(angle)).square(),
        scored_std=REWEIGHTED_STD if reweighted else None,
    )
