"""Preferences in the place of rewards: which image of a pair was chosen."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ddpo.rewards import Values
from ddpo.scoring.scorer import Scorer


class Ranking(Scorer):
    """What takes the place of rewards: 1 for an image that was chosen, 0 for one that was rejected."""

    _count = 0

    def submit(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> None:
        self._count += len(images)

    def collect(self) -> Values:
        count, self._count = self._count, 0
        return {"preference": 1.0 - torch.arange(count) % 2}

    def weighted(self, values: Values) -> Float[Tensor, " B"]:
        return values["preference"]
