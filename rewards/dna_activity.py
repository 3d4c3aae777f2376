"""Activity of a DNA sequence, by the oracle that is meant to be trained on."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ddpo.models.dna import oracles


class dna_activity:  # a reward is called what its file is called
    """The DNA world's first oracle: log2 fold change of 100 letters, about -0.5 to 7.

    Higher is more active; differentiable. A convolutional network of 36,849 parameters that learned
    an invented formula from 24,000 sequences (ddpo/models/dna): it says nothing about a cell, and
    far from those sequences it is wrong. dna_judge and dna_true_activity say how wrong.
    """

    medium = "dna"
    differentiable = True

    def __init__(self, *, device: torch.device | str, dtype: torch.dtype) -> None:
        self.oracle = oracles.load("oracle_train").to(device)

    def __call__(
        self,
        sequences: Float[Tensor, "B L 4"],
        prompts: Sequence[str],
        metadata: Sequence[Mapping[str, Any]],
    ) -> Float[Tensor, " B"]:
        return self.oracle(sequences)
