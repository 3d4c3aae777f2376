"""The advantage `group`: compared with the samples of one prompt."""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ddpo.advantages import EPSILON, mean_of, std_of


class group:
    """A = (r - mean of its group) / std, the group being the samples of one prompt.

    `std` is the unit: the standard deviation of the "group" (Shao et al. 2024), of the whole
    iteration, "global" (Flow-GRPO), or 1, "none" (Liu et al. 2025).
    """

    compares = True

    def __init__(self, *, std: Literal["group", "global", "none"] = "group") -> None:
        self.std = std

    def __call__(
        self, reward: Float[Tensor, " B"], keys: Sequence[str], group: Int[Tensor, " B"]
    ) -> Float[Tensor, " B"]:
        advantage, whole = torch.zeros_like(reward), std_of(reward)
        for number in group.unique():
            rows = group == number
            centered = reward[rows] - mean_of(reward[rows])
            scale = std_of(reward[rows]) if self.std == "group" else whole
            advantage[rows] = centered if self.std == "none" else centered / (scale + EPSILON)
        return advantage
