"""Activity of a DNA sequence, by the formula that the oracles learned from."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from ddpo.models.dna import activity
from ddpo.sequences import letters


def dna_true_activity(
    sequences: Float[Tensor, "B L 4"],
    prompts: Sequence[str],
    metadata: Sequence[Mapping[str, Any]],
) -> Float[Tensor, " B"]:
    """The DNA world's formula (ddpo/models/dna/activity.py), log2 fold change in [0, 8).

    Sites of six factors, their synergy, antagonism and crowding, without the noise that the labels
    of the oracles had. Higher is more active; not differentiable.
    """
    return activity.activity(letters(sequences))


dna_true_activity.medium = "dna"  # pyright: ignore[reportFunctionMemberAccess]
