"""Activity of a DNA sequence, by the oracle that judges and is never trained on."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ddpo.models.dna import oracles


class dna_judge:  # a reward is called what its file is called
    """The DNA world's second oracle: the network of dna_activity, learned from other sequences.

    log2 fold change of 100 letters, about -0.5 to 7; higher is more active. What dna_activity says
    and this does not was learned from the oracle, not from the data. Not to be trained on.
    """

    medium = "dna"

    def __init__(self, *, device: torch.device | str, dtype: torch.dtype) -> None:
        self.oracle = oracles.load("oracle_judge").to(device)

    def __call__(
        self,
        sequences: Float[Tensor, "B L 4"],
        prompts: Sequence[str],
        metadata: Sequence[Mapping[str, Any]],
    ) -> Float[Tensor, " B"]:
        return self.oracle(sequences)
