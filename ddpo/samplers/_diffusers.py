"""The noise levels of a model that diffusers describes by the configuration of a scheduler."""

from collections.abc import Mapping
from typing import Any, cast

from diffusers import DDIMScheduler  # pyright: ignore[reportPrivateImportUsage]
from jaxtyping import Int
from torch import Tensor

from ddpo.errors import UserError
from ddpo.samplers._noise import NoiseSchedule


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
