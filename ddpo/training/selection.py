"""Which steps and which samples of an iteration are trained on."""

import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Subset:
    """Which of the stochastic steps are trained on; all of them are sampled.

    fraction   a random share of them, drawn anew each iteration (DanceGRPO: 0.6)
    window     [first, end) of the sampling order, 0 the noisiest (MixGRPO)
    drop_last  this many steps at the end, whose small std makes log-probabilities steep
    """

    fraction: float = 1.0
    window: tuple[int, int] | None = None
    drop_last: int = 0

    def __call__(
        self, stochastic: Bool[Tensor, " T"], noise: torch.Generator
    ) -> Bool[Tensor, " T"]:
        """The `stochastic` columns that are trained on.

        There is none where the window or drop_last leave none.
        """
        first, end = self.window or (0, len(stochastic))
        end = min(end, len(stochastic) - self.drop_last)
        places = [i for i in stochastic.nonzero().flatten().tolist() if first <= i < end]
        count = math.ceil(self.fraction * len(places) - 1e-9)
        chosen = torch.zeros_like(stochastic)
        chosen[
            [places[i] for i in torch.randperm(len(places), generator=noise)[:count].tolist()]
        ] = True
        return chosen


@dataclass(frozen=True)
class Columns:
    """Which columns of a rollout's matrix are scored in the update, and under which guidance.

    subset          the denoising steps that are trained on, for objectives on log-probabilities
    draws           (timestep, noise) pairs per image and pass, for objectives on denoising errors
    guidance_scale  None: the sampler's, that of the policy that drew the images
    """

    subset: Subset = field(default_factory=Subset)
    draws: int = 1
    guidance_scale: float | None = None


def extremes(
    reward: Float[Tensor, " B"], group: Int[Tensor, " B"], keep: int
) -> Bool[Tensor, " B"]:
    """The k best and k worst samples of each group: the surest rewards (Shen & Zhang 2024)."""
    chosen = torch.zeros_like(reward, dtype=torch.bool)
    for g in group.unique():
        rows = (group == g).nonzero().flatten()
        ranked = rows[reward[rows].argsort(stable=True)]
        chosen[ranked[:keep]] = chosen[ranked[-keep:]] = True
    return chosen
