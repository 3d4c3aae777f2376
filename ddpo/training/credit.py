"""From the rewards of an iteration to what its samples are credited with."""

from collections.abc import Callable, Mapping, Sequence
from math import copysign
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ddpo.advantages import Advantage
from ddpo.rewards import Values
from ddpo.scoring.scorer import Scorer


class PerReward:
    """A = sum over rewards of w_k A_k: each is compared by itself, then they are added up (GDPO).

    Liu et al. 2026, arXiv 2601.05242. A_k is the advantage of reward k alone, with statistics of its own, so
    that w_k weighs standard deviations. Differs: GDPO normalises the sum once more over the batch.
    """

    def __init__(self, make: Callable[[], Advantage], weights: Mapping[str, float]) -> None:
        self.weights, self.each = dict(weights), {name: make() for name in weights}

    def __call__(
        self, values: Mapping[str, Float[Tensor, " B"]], prompts: Sequence[str], group: Int[Tensor, " B"],
        gated: Bool[Tensor, " B"],
    ) -> Float[Tensor, " B"]:  # fmt: skip
        parts = []
        for name, weight in self.weights.items():
            reward = lowered(copysign(1.0, weight) * values[name], group, gated)
            parts.append(abs(weight) * self.each[name](reward, prompts, group))
        return torch.stack(parts).sum(0)

    def state_dict(self) -> dict[str, Any]:
        return {name: advantage.state_dict() for name, advantage in self.each.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, advantage in self.each.items():
            advantage.load_state_dict(state.get(name, {}))


def lowered(
    reward: Float[Tensor, " B"], group: Int[Tensor, " B"], gated: Bool[Tensor, " B"]
) -> Float[Tensor, " B"]:
    """Gated samples have the lowest reward of their group: none wins a comparison within it, all tie.

    A group that is all gated has the lowest reward of all that passed (if none did, of all), so that it gains
    nothing where groups are compared. To leave gated samples out instead would teach nothing; to give them an
    advantage of 0 while their high rewards still raise the mean would push the others down.
    """
    found, present = reward.clone(), ~reward.isnan()
    passed = present & ~gated
    rest = passed if passed.any() else present
    for g in group[gated & present].unique():
        rows = (group == g) & present
        found[rows & gated] = reward[rows if (rows & passed).any() else rest].min()
    return found


def standing(scorer: Scorer, values: Values) -> float:
    """Mean of the trained sum over the pictures that have one, a gated picture being as bad as the worst."""
    reward = Scorer.weighted(scorer, values)  # of the rewards also where recorded pairs are trained on
    gated = torch.stack([reward.isinf(), *scorer.gated(values).values()]).any(0) & ~reward.isnan()
    return torch.where(gated, reward.nan_to_num(torch.inf).min(), reward).nanmean().item()
