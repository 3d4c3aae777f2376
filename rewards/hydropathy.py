"""How water-shy a protein is, by the sum over its letters."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from ddpo.sequences import ALPHABETS

SCALE = {
    "A": 1.8, "C": 2.5, "D": -3.5, "E": -3.5, "F": 2.8, "G": -0.4, "H": -3.2, "I": 4.5, "K": -3.9,
    "L": 3.8, "M": 1.9, "N": -3.5, "P": -1.6, "Q": -3.5, "R": -4.5, "S": -0.8, "T": -0.7, "V": 4.2,
    "W": -0.9, "Y": -1.3,
}  # fmt: skip
"""Kyte and Doolittle 1982 (Journal of Molecular Biology 157, 105)."""


def hydropathy(
    sequences: Float[Tensor, "B L 20"],
    prompts: Sequence[str],
    metadata: Sequence[Mapping[str, Any]],
) -> Float[Tensor, " B"]:
    """GRAVY, the grand average of hydropathy (Kyte and Doolittle 1982), from -4.5 to 4.5.

    The mean over letters of their hydropathy; below 0 is hydrophilic, and a negative weight makes a
    protein more so. Differentiable. A formula to try a protein model with: it knows nothing of
    folding.
    """
    scale = sequences.new_tensor([SCALE[letter] for letter in ALPHABETS["protein"]])
    return (sequences * scale).sum(-1).mean(-1)


hydropathy.medium = "protein"  # pyright: ignore[reportFunctionMemberAccess]
hydropathy.differentiable = True  # pyright: ignore[reportFunctionMemberAccess]
