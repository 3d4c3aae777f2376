"""How much redder than anything else is the picture?"""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor


def redness(
    images: Float[Tensor, "B 3 H W"], prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]
) -> Float[Tensor, "B"]:
    """Mean red minus the mean of green and blue: -1 (cyan) to 1 (red), 0 for gray.

    Differentiable. A toy, for trials: whoever maximizes it gets red pictures.
    """
    return images[:, 0].mean((1, 2)) - images[:, 1:].mean((1, 2, 3))


redness.differentiable = True  # pyright: ignore[reportFunctionMemberAccess]
