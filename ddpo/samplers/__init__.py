"""What a sampler is: the T reverse steps of a diffusion model, each a distribution.

    def ddim(schedule: NoiseSchedule, num_steps: int, *, eta: float = 1.0) -> Steps

Without clipping, the mean of a step is linear in the current latents and in the
network's output m,

    x_s ~ N(mean, std^2),    mean = x_coefficient * x_t + output_coefficient * m,

whatever the output means (epsilon, v, x_0 or a velocity). So a Gaussian sampler is three tables,
one row per step, and everything else is the same few lines for all of them. The sampler chooses the
timesteps that it visits; the model's `NoiseSchedule` says how much noise there is. Tables are
computed in fp64 and kept in fp32; index 0 is the noisiest step.

A masked sampler steps on a model's `MaskSchedule`; its steps are categorical. Whatever it is, a
step has `sample(noise)`, `log_prob(x)` and `kl(other)`. Adding a sampler is adding one file here,
or in the `samplers` folder of a plugin.
"""

from collections.abc import Callable
from inspect import signature
from typing import Any, Protocol, cast

from jaxtyping import Float, Shaped
from torch import Tensor

from ddpo import plugins
from ddpo.errors import UserError, where
from ddpo.samplers._gaussian import Gaussian, Reduction, Steps, gaussian_steps
from ddpo.samplers._masked import Masked, MaskedSteps, MaskSchedule, likeliest
from ddpo.samplers._noise import SAMPLERS, NoiseSchedule, Prediction, RectifiedFlow, require
from ddpo.samplers._window import Window

Schedule = NoiseSchedule | MaskSchedule
AnySteps = Steps | MaskedSteps


class Step(Protocol):
    """What a step makes of N states: a `Gaussian` or a `Masked`, as these say."""

    def sample(self, noise: Float[Tensor, "N *noise"]) -> Shaped[Tensor, "N *state"]: ...

    def rsample(self, noise: Float[Tensor, "N *noise"]) -> Float[Tensor, "N *rows"]: ...

    def log_prob(
        self, x: Shaped[Tensor, "N *state"], reduction: Reduction = "mean"
    ) -> Float[Tensor, " N"]: ...

    def kl(self, other: Any, reduction: Reduction = "mean") -> Float[Tensor, " N"]: ...


__all__ = [
    "AnySteps",
    "Gaussian",
    "MaskSchedule",
    "Masked",
    "MaskedSteps",
    "NoiseSchedule",
    "Prediction",
    "RectifiedFlow",
    "Reduction",
    "Schedule",
    "Step",
    "Steps",
    "Window",
    "build",
    "deterministic",
    "deterministic_with",
    "gaussian_steps",
    "likeliest",
    "require",
]

__path__ = [*__path__, *plugins.folders("samplers")[1:]]


Sampler = Callable[..., AnySteps]


def deterministic_with(**options: float) -> Callable[[Sampler], Sampler]:
    """Says with which options a sampler's steps have no noise, at the same timesteps."""

    def decorate(sampler: Sampler) -> Sampler:
        sampler.deterministic_with = options  # pyright: ignore[reportFunctionMemberAccess]
        return sampler

    return decorate


def deterministic(name: str, schedule: Schedule, num_steps: int, **options: Any) -> AnySteps:
    """The steps of that sampler without their noise. Raises UserError where it has none such."""
    without_noise = getattr(plugins.load("samplers", name), "deterministic_with", None)
    if without_noise is None:
        raise UserError(
            f"sampler.sde_window: {name} has no deterministic steps for outside the window; "
            "take ddim, euler_ancestral, flow_sde or cps"
        )
    return build(name, schedule, num_steps, **{**options, **without_noise})


def build(name: str, schedule: Schedule, num_steps: int, **options: Any) -> AnySteps:
    """The steps of the sampler of that name on the noise levels of a model.

    Raises UserError for options and numbers of steps that the sampler or the schedule refuses, for
    a sampler that steps on another kind of schedule, and for one that raises or returns anything
    but steps.
    """
    sampler = cast(Sampler, plugins.load("samplers", name))
    _check_kind(name, sampler, schedule)
    try:
        steps = sampler(schedule, num_steps, **options)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"sampler {name} raised {where(error)}") from error
    if not isinstance(steps, AnySteps) or len(steps) != num_steps:
        returned = f"{len(steps)} steps" if isinstance(steps, AnySteps) else type(steps).__name__
        raise UserError(
            f"sampler {name} returned {returned} for sampler.num_steps {num_steps}; "
            "return that many, as gaussian_steps makes them"
        )
    steps.check(name)
    return steps


def _check_kind(name: str, sampler: Callable[..., AnySteps], schedule: Schedule) -> None:
    """Raises UserError for a sampler whose first parameter is another kind of schedule."""
    first = next(iter(signature(sampler, eval_str=True).parameters.values())).annotation
    if isinstance(first, type) and not isinstance(schedule, first):
        masks = isinstance(schedule, MaskSchedule)
        does = "puts masks in the place of letters" if masks else "adds noise"
        remedy = "masked" if masks else SAMPLERS[schedule.kind]
        raise UserError(f"sampler.name: {name} does not fit the model, which {does}; take {remedy}")
