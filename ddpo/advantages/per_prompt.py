"""The advantage `per_prompt`: compared with the last rewards of a prompt."""

from collections import deque
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ddpo.advantages import EPSILON, mean_of, std_of
from ddpo.advantages.batch import batch
from ddpo.plugins.ranges import PositiveInt


class per_prompt:
    """A = (r - mean_c) / std_c over the last `buffer_size` rewards of prompt c (Black et al. 2023).

    The rewards come from all iterations; the present ones are among them. A prompt with fewer than
    `min_count` stored rewards is compared with the whole iteration instead, as in the paper: with
    prompts that are seen only a few times, use groups. Prompts are told apart by their keys.
    """

    def __init__(self, *, buffer_size: PositiveInt = 32, min_count: PositiveInt = 16) -> None:
        self.buffer_size, self.min_count = buffer_size, min_count
        self.history: dict[str, deque[float]] = {}

    def __call__(
        self, reward: Float[Tensor, " B"], keys: Sequence[str], group: Int[Tensor, " B"]
    ) -> Float[Tensor, " B"]:
        for key, value in zip(keys, reward.tolist(), strict=True):
            self.history.setdefault(key, deque(maxlen=self.buffer_size)).append(value)
        advantage = batch(reward, keys, group)
        for key in set(keys):
            values = torch.tensor(list(self.history[key]), dtype=reward.dtype)
            if len(values) >= self.min_count:
                rows = torch.tensor([other == key for other in keys])
                advantage[rows] = (reward[rows] - mean_of(values)) / (std_of(values) + EPSILON)
        return advantage

    def state_dict(self) -> dict[str, list[float]]:
        return {key: list(values) for key, values in self.history.items()}

    def load_state_dict(self, state: dict[str, list[float]]) -> None:
        self.history = {
            key: deque(values, maxlen=self.buffer_size) for key, values in state.items()
        }
