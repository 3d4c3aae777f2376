"""One reverse step of a diffusion model as a Gaussian: moments, sample, log-probability, KL divergence.

Without clipping, the mean of a DDIM or DDPM step is linear in the current latents and in the network's output
m,

    x_s ~ N(mean, std^2),    mean = x_coefficient * x_t + output_coefficient * m,

whatever the output means (epsilon, v or x_0). So a sampler is three tables, one row a step, and everything
else is the same few lines for all samplers. Tables are computed in fp64 and kept in fp32; index 0 is the
noisiest step.
"""

from collections.abc import Callable

from ddpo.samplers.ddim import ddim
from ddpo.samplers.ddpm import ddpm
from ddpo.samplers.gaussian import Reduction, Steps, kl, log_prob, mean, sample
from ddpo.samplers.noise import NoiseSchedule, Prediction

__all__ = [
    "SAMPLERS", "NoiseSchedule", "Prediction", "Reduction", "Steps",
    "ddim", "ddpm", "kl", "log_prob", "mean", "sample",
]  # fmt: skip

SAMPLERS: dict[str, Callable[..., Steps]] = {"ddim": ddim, "ddpm": ddpm}
