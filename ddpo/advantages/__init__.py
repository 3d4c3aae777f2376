"""From rewards to advantages: what a sample's reward is compared with, and in which unit.

Every function takes all rewards of an iteration (gathered over ranks, so that each rank computes the same),
with NaN where a sample has no value, and returns advantages with NaN at the same places: such samples take no
part.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from math import copysign
from typing import Any, Literal, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ddpo.plugins.ranges import PositiveInt

EPSILON = 1e-6
"""Added to every standard deviation, as in Black et al. 2023; equal rewards give advantages of exactly 0."""


class Advantage(Protocol):
    """Rewards to advantages; `state_dict` holds what the next iteration depends on."""

    def __call__(
        self, reward: Float[Tensor, " B"], prompts: Sequence[str], group: Int[Tensor, " B"]
    ) -> Float[Tensor, " B"]: ...

    def state_dict(self) -> dict[str, list[float]]: ...

    def load_state_dict(self, state: dict[str, list[float]]) -> None: ...


class Stateless:
    """An advantage that remembers nothing between iterations."""

    def state_dict(self) -> dict[str, list[float]]:
        return {}

    def load_state_dict(self, state: dict[str, list[float]]) -> None:
        pass


class Batch(Stateless):
    """A = (r - mean) / std over the whole iteration."""

    def __call__(
        self, reward: Float[Tensor, " B"], prompts: Sequence[str], group: Int[Tensor, " B"]
    ) -> Float[Tensor, " B"]:
        present = reward[~reward.isnan()]
        return (reward - _mean(present)) / (_std(present) + EPSILON)


class Group(Stateless):
    """A = (r - mean of its group) / std: of its group, of the whole iteration ("global"), or 1 ("none").

    A group is the samples of one prompt. Shao et al. 2024 (group), Liu et al. 2025, Flow-GRPO (global).
    """

    def __init__(self, *, std: Literal["group", "global", "none"] = "group") -> None:
        self.std = std

    def __call__(
        self, reward: Float[Tensor, " B"], prompts: Sequence[str], group: Int[Tensor, " B"]
    ) -> Float[Tensor, " B"]:
        advantage, scale = torch.full_like(reward, torch.nan), _std(reward[~reward.isnan()])
        for g in group.unique():
            rows = (group == g) & ~reward.isnan()
            if rows.any():
                own = _std(reward[rows]) if self.std == "group" else scale
                centred = reward[rows] - _mean(reward[rows])
                advantage[rows] = centred if self.std == "none" else centred / (own + EPSILON)
        return advantage


class PerPrompt:
    """A = (r - mean_c) / std_c over the last `buffer_size` rewards of prompt c (Black et al. 2023).

    The rewards come from all iterations; the present ones are among them. A prompt with fewer than
    `min_count` stored rewards is compared with the whole iteration instead, as in the paper: with prompts
    that are seen only a few times, use groups.
    """

    def __init__(self, *, buffer_size: PositiveInt = 32, min_count: PositiveInt = 16) -> None:
        self.buffer_size, self.min_count = buffer_size, min_count
        self.history: dict[str, deque[float]] = {}

    def __call__(
        self, reward: Float[Tensor, " B"], prompts: Sequence[str], group: Int[Tensor, " B"]
    ) -> Float[Tensor, " B"]:
        for prompt, value in zip(prompts, reward.tolist(), strict=True):
            if value == value:  # not NaN
                self.history.setdefault(prompt, deque(maxlen=self.buffer_size)).append(value)
        advantage = Batch()(reward, prompts, group)
        for prompt in set(prompts):
            values = torch.tensor(list(self.history.get(prompt, ())), dtype=reward.dtype)
            if len(values) >= self.min_count:
                rows = torch.tensor([name == prompt for name in prompts])
                advantage[rows] = (reward[rows] - _mean(values)) / (_std(values) + EPSILON)
        return advantage

    def state_dict(self) -> dict[str, list[float]]:
        return {prompt: list(values) for prompt, values in self.history.items()}

    def load_state_dict(self, state: dict[str, list[float]]) -> None:
        self.history = {prompt: deque(values, maxlen=self.buffer_size) for prompt, values in state.items()}


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


ADVANTAGES: dict[str, type] = {"batch": Batch, "per_prompt": PerPrompt, "group": Group}


def extremes(reward: Float[Tensor, " B"], group: Int[Tensor, " B"], keep: int) -> Bool[Tensor, " B"]:
    """The `keep` best and worst samples of each group: rewards are surest there (Shen & Zhang 2024)."""
    chosen = torch.zeros_like(reward, dtype=torch.bool)
    for g in group.unique():
        rows = ((group == g) & ~reward.isnan()).nonzero().flatten()
        ranked = rows[reward[rows].argsort(stable=True)]
        chosen[ranked[:keep]] = chosen[ranked[-keep:]] = True
    return chosen


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


def _mean(values: Float[Tensor, " N"]) -> Tensor:
    """Mean that rounding cannot carry outside the values: for equal values it is that value, exactly."""
    return values.mean().clamp(values.min(), values.max()) if len(values) else values.new_zeros(())


def _std(values: Float[Tensor, " N"]) -> Tensor:
    """Population standard deviation; exactly 0 when all values are equal."""
    return values.std(correction=0) if len(values) and values.min() != values.max() else values.new_zeros(())
