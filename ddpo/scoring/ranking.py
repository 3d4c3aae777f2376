"""Preferences in the place of rewards: which image of a pair was chosen."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ddpo.rewards import Metadata, Values

PREFERENCE = "preference"
"""The name of what is trained on where pairs are recorded."""


class Ranking:
    """A peer of `Scorer` that asks no reward: 1 for the chosen image, 0 for the rejected one.

    The images of recorded pairs come in the order chosen, rejected, chosen, ...
    """

    def __init__(self) -> None:
        self._count = 0

    def submit(self, images: Tensor, prompts: Sequence[str], metadata: Metadata) -> None:
        self._count += len(images)

    def collect(self) -> Values:
        count, self._count = self._count, 0
        return {PREFERENCE: 1.0 - torch.arange(count) % 2}
