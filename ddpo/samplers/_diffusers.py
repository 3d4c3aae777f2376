"""The noise levels of a model that diffusers describes by the configuration of a scheduler."""

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,  # pyright: ignore[reportPrivateImportUsage]
    FlowMatchEulerDiscreteScheduler,  # pyright: ignore[reportPrivateImportUsage]
)
from jaxtyping import Float, Int
from torch import Tensor

from ddpo.errors import UserError
from ddpo.samplers._noise import NoiseSchedule, RectifiedFlow


def variance_preserving(config: Mapping[str, Any]) -> NoiseSchedule:
    """Timesteps, spacing and final level as diffusers' DDIMScheduler has them.

    Raises UserError where the scheduler clips predictions.
    """
    if config.get("clip_sample", False) or config.get("thresholding", False):
        raise UserError(
            "model.pretrained: its scheduler clips predicted images, so that a step is no longer "
            "the Gaussian whose log-probability is trained on; "
            "set clip_sample and thresholding to false in its scheduler_config"
        )
    scheduler = cast(DDIMScheduler, DDIMScheduler.from_config(dict(config), clip_sample=False))
    alphas, final = scheduler.alphas_cumprod.double(), float(scheduler.final_alpha_cumprod)

    def spacing(num_steps: int) -> Int[Tensor, " T"]:
        scheduler.set_timesteps(num_steps)
        return scheduler.timesteps.long()

    return NoiseSchedule(
        alphas.sqrt(),
        (1 - alphas).sqrt(),
        (final**0.5, (1 - final) ** 0.5),
        scheduler.config["prediction_type"],
        spacing,
    )


def rectified_flow(
    config: Mapping[str, Any], image_tokens: int | None = None, uniform: bool = False
) -> RectifiedFlow:
    """Timesteps as diffusers' FlowMatchEulerDiscreteScheduler has them, static or dynamic shift.

    image_tokens  tokens of a picture, on whose number a dynamic shift depends: its exponent goes
                  from `base_shift` at `base_image_seq_len` to `max_shift` at `max_image_seq_len`
    uniform       the levels before the shift are 1, 1 - 1/T, ..., 1/T, as FLUX's pipeline passes
                  them; else the scheduler's own, of which the last is nearly 0

    Raises UserError for a scheduler that counts noise the other way round, or adds some itself.
    """
    for option in ("invert_sigmas", "stochastic_sampling"):
        if config.get(option):
            raise UserError(
                f"model.pretrained: its scheduler has {option}, which the samplers of this program "
                "do not know; set it to false in its scheduler_config"
            )
    scheduler = cast(
        FlowMatchEulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler.from_config(dict(config))
    )
    shift = {"mu": dynamic_shift(scheduler.config, image_tokens)} if _dynamic(scheduler) else {}
    total = int(scheduler.config["num_train_timesteps"])

    def spacing(num_steps: int) -> Float[Tensor, " T"]:
        if num_steps == 1 and scheduler.config.get("shift_terminal"):
            raise UserError(
                "sampler.num_steps: 1 cannot both begin at pure noise and end at the "
                "shift_terminal of the model's scheduler; take 2 or more"
            )
        sigmas = np.linspace(1.0, 1 / num_steps, num_steps) if uniform else None
        scheduler.set_timesteps(num_steps, sigmas=sigmas, **shift)  # pyright: ignore
        return cast(Tensor, scheduler.timesteps).double()

    noise = torch.arange(total, dtype=torch.float64) / total
    return RectifiedFlow(1 - noise, noise, (1.0, 0.0), "velocity", spacing, spacing(total))


def _dynamic(scheduler: FlowMatchEulerDiscreteScheduler) -> bool:
    return bool(scheduler.config.get("use_dynamic_shifting"))


def dynamic_shift(config: Mapping[str, Any], image_tokens: int | None) -> float:
    """The exponent mu of a dynamic shift: a line through the two lengths of the configuration."""
    if image_tokens is None:
        raise ValueError("a dynamic shift depends on the number of image tokens")
    (first, last), (low, high) = (
        (config["base_image_seq_len"], config["max_image_seq_len"]),
        (config["base_shift"], config["max_shift"]),
    )
    return low + (high - low) * (image_tokens - first) / (last - first)
