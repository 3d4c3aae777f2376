"""What a sampler is: the T reverse steps of a diffusion model, each a distribution.

    def ddim(schedule: NoiseSchedule, num_steps: int, *, eta: float = 1.0) -> Steps

Without clipping, the mean of a DDIM or DDPM step is linear in the current latents and in the
network's output m,

    x_s ~ N(mean, std^2),    mean = x_coefficient * x_t + output_coefficient * m,

whatever the output means (epsilon, v, x_0 or a velocity). So a Gaussian sampler is three tables,
one row per step, and everything else is the same few lines for all of them. The sampler chooses the
timesteps that it visits; the model's `NoiseSchedule` says how much noise there is. Tables are
computed in fp64 and kept in fp32; index 0 is the noisiest step. Adding a sampler is adding one file
here, or in the `samplers` folder of a plugin.
"""

from collections.abc import Callable
from typing import Any, cast

import torch

from ddpo import plugins
from ddpo.errors import UserError, where
from ddpo.samplers._gaussian import Gaussian, Reduction, Steps, gaussian_steps
from ddpo.samplers._noise import NoiseSchedule, Prediction

__all__ = [
    "Gaussian",
    "NoiseSchedule",
    "Prediction",
    "Reduction",
    "Steps",
    "build",
    "gaussian_steps",
]

__path__ = [*__path__, *plugins.folders("samplers")[1:]]


def build(name: str, schedule: NoiseSchedule, num_steps: int, **options: Any) -> Steps:
    """The steps of the sampler of that name on the noise levels of a model.

    Raises UserError for options and numbers of steps that the sampler or the schedule refuses, and
    for a sampler that raises or returns anything but steps.
    """
    sampler = cast(Callable[..., Steps], plugins.load("samplers", name))
    try:
        steps = sampler(schedule, num_steps, **options)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"sampler {name} raised {where(error)}") from error
    if not isinstance(steps, Steps) or len(steps) != num_steps:
        returned = f"{len(steps)} steps" if isinstance(steps, Steps) else type(steps).__name__
        raise UserError(
            f"sampler {name} returned {returned} for sampler.num_steps {num_steps}; "
            "return that many, as gaussian_steps makes them"
        )
    tables = torch.stack([steps.x_coefficient, steps.output_coefficient, steps.std])
    if not tables.isfinite().all():
        step = int((~tables.isfinite().all(0)).nonzero()[0])
        raise UserError(
            f"sampler {name}: the coefficients of step {step} are not finite; "
            "look at its options, and at divisions by a signal or noise of 0"
        )
    return steps
