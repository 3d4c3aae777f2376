"""Masked diffusion: masks become letters, in random order."""

from typing import Literal

import torch

from ddpo.errors import UserError
from ddpo.samplers import MaskedSteps, MaskSchedule


def masked(
    schedule: MaskSchedule,
    num_steps: int,
    *,
    reveal: Literal["independent", "counted"] = "independent",
) -> MaskedSteps:
    """Ancestral sampling of MDLM (Sahoo et al. 2024, arXiv 2406.07524): from all masks, at times
    t = 1 - k / n, the step to s = t - 1 / n reveals each mask with probability (t - s) / t.

    Letters that are revealed in one step do not know of each other: with few steps the samples are
    not the network's own, even where the network is right.

    `reveal` independent: each mask on its own, as in the paper; counted: the same number of letters
    in each step, at places chosen at random, so that with as many steps as letters it is one letter
    at a time. Raises UserError for counted steps that reveal nothing.
    """
    if reveal == "counted" and num_steps > schedule.length:
        raise UserError(
            f"sampler.num_steps: {num_steps} counted steps for {schedule.length} letters would "
            f"reveal nothing in some; take {schedule.length} or fewer"
        )
    remaining = torch.arange(num_steps, 0, -1, dtype=torch.float64)
    left = None
    if reveal == "counted":
        left = (schedule.length * (remaining - 1) / num_steps).floor().long()
    return MaskedSteps(
        timesteps=(remaining / num_steps).float(),
        stay=((remaining - 1) / remaining).float(),
        left=left,
        letters=schedule.letters,
    )
