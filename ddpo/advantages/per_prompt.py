"""The advantage `per_prompt`: compared with the last rewards of a prompt."""

from collections import deque
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ddpo.advantages.batch import Batch
from ddpo.advantages.contract import EPSILON, mean_of, std_of
from ddpo.plugins.ranges import PositiveInt


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
                advantage[rows] = (reward[rows] - mean_of(values)) / (std_of(values) + EPSILON)
        return advantage

    def state_dict(self) -> dict[str, list[float]]:
        return {prompt: list(values) for prompt, values in self.history.items()}

    def load_state_dict(self, state: dict[str, list[float]]) -> None:
        self.history = {prompt: deque(values, maxlen=self.buffer_size) for prompt, values in state.items()}
