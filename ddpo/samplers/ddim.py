"""DDIM, with noise."""

import torch

from ddpo.samplers.gaussian import Steps
from ddpo.samplers.noise import NoiseSchedule, tables


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
    return tables(schedule, x0=a_next.sqrt(), epsilon=direction, x=torch.zeros_like(a), variance=variance)
