"""A guard: how bright is the picture?"""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from ddpo.images import brightness as mean_luma


def brightness(
    images: Float[Tensor, "B 3 H W"], prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]
) -> Float[Tensor, "B"]:
    """Mean luma (Rec. 601), 0 (black) to 1 (white): what runs log as guard/brightness.

    Differentiable. Meant for a `min:` or `max:` gate, or as a judge that is never trained on.
    """
    return mean_luma(images)


brightness.differentiable = True  # pyright: ignore[reportFunctionMemberAccess]
