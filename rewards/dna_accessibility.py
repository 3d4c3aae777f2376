"""Does a DNA sequence look like open chromatin, to a network that never saw an activity?"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ddpo.models.dna import oracles


class dna_accessibility:  # a reward is called what its file is called
    """1 where the DNA world's classifier says accessible, else 0; higher is better.

    What the ATAC classifier is in the DRAKES paper's table. Its label, by a formula of FOXA sites,
    GC content and runs, has hardly anything to do with activity. Not differentiable.
    """

    medium = "dna"

    def __init__(self, *, device: torch.device | str, dtype: torch.dtype) -> None:
        self.classifier = oracles.load("accessibility").to(device)

    def __call__(
        self,
        sequences: Float[Tensor, "B L 4"],
        prompts: Sequence[str],
        metadata: Sequence[Mapping[str, Any]],
    ) -> Float[Tensor, " B"]:
        return (self.classifier(sequences) > 0).float()
