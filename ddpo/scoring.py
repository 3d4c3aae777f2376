"""Images to rewards, in threads beside the sampling of the next images."""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ddpo.rewards import Reward, total

Values = dict[str, Float[Tensor, " B"]]


class Scorer:
    """Scores chunks of images with every reward; `submit` returns at once, `collect` waits."""

    def __init__(self, rewards: Sequence[Reward], threads: int = 2) -> None:
        self.rewards = list(rewards)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="reward")
        self._pending: list[Future[Values]] = []

    def submit(
        self,
        images: Float[Tensor, "B 3 height width"],
        prompts: Sequence[str],
        metadata: Sequence[Mapping[str, Any]],
    ) -> None:
        """Start scoring a chunk."""
        self._pending.append(self._pool.submit(self._score, images, list(prompts), list(metadata)))

    def _score(self, images: Tensor, prompts: list[str], metadata: list[Mapping[str, Any]]) -> Values:
        with torch.no_grad():  # which is a thread's own affair
            return {reward.name: reward(images, prompts, metadata) for reward in self.rewards}

    def collect(self) -> Values:
        """Every reward's values of all chunks since the last call, in order. Raises what a reward raised."""
        pending, self._pending = self._pending, []
        chunks = [future.result() for future in pending]
        return {reward.name: torch.cat([chunk[reward.name] for chunk in chunks]) for reward in self.rewards}

    def weighted(self, values: Values) -> Float[Tensor, " B"]:
        """The sum that is trained on; anything but a finite number is "no value"."""
        reward = total(self.rewards, values)
        return torch.where(reward.isfinite(), reward, torch.nan)
