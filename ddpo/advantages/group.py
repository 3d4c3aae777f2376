"""The advantage `group`: compared with the samples of one prompt."""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ddpo.advantages.contract import EPSILON, Stateless, mean_of, std_of


class Group(Stateless):
    """A = (r - mean of its group) / std: of its group, of the whole iteration ("global"), or 1 ("none").

    A group is the samples of one prompt. Shao et al. 2024 (group), Liu et al. 2025, Flow-GRPO (global).
    """

    def __init__(self, *, std: Literal["group", "global", "none"] = "group") -> None:
        self.std = std

    def __call__(
        self, reward: Float[Tensor, " B"], prompts: Sequence[str], group: Int[Tensor, " B"]
    ) -> Float[Tensor, " B"]:
        advantage, scale = torch.full_like(reward, torch.nan), std_of(reward[~reward.isnan()])
        for g in group.unique():
            rows = (group == g) & ~reward.isnan()
            if rows.any():
                own = std_of(reward[rows]) if self.std == "group" else scale
                centred = reward[rows] - mean_of(reward[rows])
                advantage[rows] = centred if self.std == "none" else centred / (own + EPSILON)
        return advantage
