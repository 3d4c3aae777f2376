"""Are a group's 3-mers those of the DNA world's most active sequences?"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ddpo.models.dna import activity, grammar, statistics
from ddpo.plugins.ranges import PositiveInt
from ddpo.sequences import letters

SEED, SHARE = 5, 0.1
"""Of the held-out sequences of the grammar, and the share of them that is compared with."""


class dna_kmers:  # a reward is called what its file is called
    """Pearson's correlation of a prompt's sequences with the top decile by activity, in [-1, 1].

    Of the frequencies of all words of `k` letters; the DRAKES paper has k = 3. One value for all
    the sequences of a call, which are those of one prompt: it takes some 500 of them to be exact
    (64 sequences of the data reach no more than .95 with all of it). The top decile is that of
    `drawn` sequences of the grammar. Higher is more natural; not differentiable.
    """

    medium = "dna"
    groupwise = True

    def __init__(
        self,
        *,
        device: torch.device | str,
        dtype: torch.dtype,
        k: PositiveInt = 3,
        drawn: PositiveInt = 10_000,
    ) -> None:
        data, self.k = grammar.draw(drawn, SEED), k
        best = activity.activity(data).argsort(descending=True)[: max(1, int(SHARE * drawn))]
        self.best = data[best]

    def __call__(
        self,
        sequences: Float[Tensor, "B L 4"],
        prompts: Sequence[str],
        metadata: Sequence[Mapping[str, Any]],
    ) -> Float[Tensor, " B"]:
        value = statistics.kmer_correlation(letters(sequences).cpu(), self.best, self.k)
        return torch.full((len(sequences),), value)
