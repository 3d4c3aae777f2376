"""How a run samples: in training, and for pictures that are shown and judged."""

from dataclasses import replace
from typing import cast

from ddpo import config, samplers
from ddpo.config import Config
from ddpo.errors import UserError
from ddpo.models import Policy
from ddpo.rollout.sample import Sampler
from ddpo.samplers import Steps, Window


def sampler(settings: Config, model: Policy) -> Sampler:
    """That of training.

    Raises UserError for an invalid sampler, number of steps or eta, and for guidance in vain.
    """
    update = settings.objective.guidance_scale
    if update not in (None, 1):
        _check_guidance(model, update, "objective")
    return _sampler(settings.sampler, model)


def _check_guidance(model: Policy, scale: float, place: str) -> None:
    if scale != 1 and not getattr(model, "conditional", True):
        raise UserError(
            f"{place}.guidance_scale: {scale:g}, but this model has no condition to "
            "be guided by; set it to 1"
        )


def _sampler(own: config.Sampler, model: Policy) -> Sampler:
    _check_guidance(model, own.guidance_scale, "sampler")
    arguments = own.name, model.schedule, own.num_steps
    steps, window = samplers.build(*arguments, **own.options), None
    if own.sde_window is not None:
        quiet = samplers.deterministic(*arguments, **own.options)
        window = Window(**dict(own.sde_window), deterministic=cast(Steps, quiet))
        window.check(cast(Steps, steps))
        window = window.to(model.device)
    # `auto` stands for 1 until it is settled
    batch_size = 1 if own.batch_size == "auto" else own.batch_size
    guidance = own.guidance_scale, batch_size, own.negative_prompt
    return Sampler(steps.to(model.device), *guidance, window)


def evaluation_sampler(settings: Config, model: Policy) -> Sampler:
    """That of pictures which are shown and judged: `evaluation.sampler`, or as in training.

    There all steps have their noise: a window belongs to an iteration. Raises UserError for an
    invalid one.
    """
    own = settings.evaluation.sampler
    if own is None:
        return replace(sampler(settings, model), window=None)
    if own.sde_window is not None:
        raise UserError(
            "evaluation.sampler.sde_window: a window of steps with noise belongs to training; "
            "leave it out, or set sampler.sde_window"
        )
    try:
        return _sampler(own, model)
    except UserError as error:
        raise UserError(f"evaluation.{error}") from error
