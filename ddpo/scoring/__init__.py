"""From images to rewards."""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from ddpo.rewards import Metadata, Values


class Scoring(Protocol):
    """What a trainer asks about its images, chunk by chunk; `Scorer` and `Ranking` answer."""

    def submit(self, images: Tensor, prompts: Sequence[str], metadata: Metadata) -> None:
        """Begin to score B images (B, 3, H, W) in [0, 1] with their prompts and metadata."""
        ...

    def collect(self) -> Values:
        """By name, the values of all images since the last call, in order."""
        ...
