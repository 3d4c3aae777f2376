"""A guard: how much is drawn in the picture?"""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from ddpo.images import edge_density as share_of_edges


def edge_density(
    images: Float[Tensor, "B 3 H W"], prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]
) -> Float[Tensor, "B"]:
    """Share of the pixels on an edge, 0 to 1: the statistic that runs log as guard/edge_density.

    |grad Y| > 0.1 of the luma (Rec. 601) in [0, 1]. Not differentiable. Meant for a `min:` gate:
    blank pictures, the optimum of a compression reward, have 0.
    """
    return share_of_edges(images)
