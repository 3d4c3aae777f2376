"""A rectified flow as a stochastic differential equation: Flow-GRPO's and DanceGRPO's steps."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ddpo.errors import UserError
from ddpo.plugins.ranges import NonNegativeFloat
from ddpo.samplers import NoiseSchedule, Steps, deterministic_with, gaussian_steps, require

Integrator = Literal["euler_maruyama", "exponential"]


@deterministic_with(noise_level=0.0)
def flow_sde(
    schedule: NoiseSchedule,
    num_steps: int,
    *,
    noise_level: NonNegativeFloat = 0.7,
    constant: bool = False,
    integrator: Integrator = "euler_maruyama",
    noisy_last: bool = False,
) -> Steps:
    """The SDE with the marginals of a rectified flow (Flow-GRPO, arXiv 2505.05470; DanceGRPO).

    dx   = [v + g^2 / (2t) (x + (1 - t) v)] dt + g dw,    g = noise_level sqrt(t / (1 - t))
    mean = x_t (1 + g^2 dt / (2t)) + v (1 + g^2 (1 - t) / (2t)) dt,    dt = s - t < 0
    std  = g sqrt(-dt)

    with t the noise level of a step and s that of the next one, 0 after the last. At t = 1 g would
    be infinite: the first step takes its 1 - t from the second, as Flow-GRPO does.

    `noise_level` is a of the formula, 0.7 in Flow-GRPO; 0 takes Euler's steps without noise.
    `constant` takes `noise_level` itself for g, as DanceGRPO does (0.3 for FLUX, arXiv 2505.07818).
    `integrator` euler_maruyama is the formula above, as published; its first steps have up to 10 %
    more variance than the flow, whatever their number, since g^2 dt does not get small there.
    exponential integrates the noise over the whole step with x_0 fixed, and keeps the flow's.
    `noisy_last` adds noise in the last step of euler_maruyama, too. Differs: Flow-GRPO and
    DanceGRPO add it. It stays in the picture, and where the scheduler ends at a t near 0, as
    Stable Diffusion 3's does (10 steps: 0.009), its std is so small that log-probabilities are as
    steep as nowhere else; both leave that step out of training. Without it the last step is Euler's
    and has no density.
    """
    require("rectified-flow", schedule, "flow_sde")
    timesteps = schedule.timesteps(num_steps)
    _, t = schedule.levels(timesteps)
    s = torch.cat([t[1:], t.new_zeros(1)])
    if integrator == "exponential":
        if noisy_last:
            raise UserError("sampler.noisy_last: exponential ends without noise; leave it out")
        kept = _kept_noise(t, s, noise_level, constant)
        fresh = s.square() * (1 - kept.square())
        nothing = torch.zeros_like(s)
        return gaussian_steps(
            schedule, timesteps, x0=1 - s, epsilon=s * kept, x=nothing, variance=fresh
        )
    room = 1 - torch.cat([s[:1], t[1:]])  # 1 - t, but in the first step
    g_squared = noise_level**2 * (torch.ones_like(t) if constant else t / room)
    if not noisy_last:
        g_squared[-1] = 0
    velocity = (1 + g_squared * (1 - t) / (2 * t)) * (s - t)  # times v = epsilon - x_0
    x = 1 + g_squared * (s - t) / (2 * t)
    variance = g_squared * (t - s)
    return gaussian_steps(
        schedule, timesteps, x0=-velocity, epsilon=velocity, x=x, variance=variance
    )


def _kept_noise(
    t: Float[Tensor, " T"], s: Float[Tensor, " T"], noise_level: float, constant: bool
) -> Float[Tensor, " T"]:
    """The share of epsilon_t in epsilon_s: exp(-1/2 times the integral of g^2 / tau^2 over a step).

    It is 0 at t = 1, where g is infinite (unless it is `constant`).
    """
    if noise_level == 0:
        return torch.ones_like(t)
    if constant:
        return (-0.5 * noise_level**2 * (1 / s - 1 / t)).exp()
    return (s / (1 - s) * (1 - t) / t) ** (noise_level**2 / 2)
