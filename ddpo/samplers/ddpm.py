"""DDPM's ancestral sampling."""

from typing import Literal

import torch

from ddpo.samplers.gaussian import Steps
from ddpo.samplers.noise import NoiseSchedule, tables


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
    return tables(schedule, x0=x0, epsilon=torch.zeros_like(a), x=x, variance=steps_variance)
