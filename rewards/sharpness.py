"""A guard: is the picture sharp?"""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from ddpo.images import luma


def sharpness(
    images: Float[Tensor, "B 3 H W"], prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]
) -> Float[Tensor, "B"]:
    """Variance of the Laplacian of the luma, 0 to 16: 0 for a plain picture, low for a blur.

    L(y, x) = Y(y-1, x) + Y(y+1, x) + Y(y, x-1) + Y(y, x+1) - 4 Y(y, x) over the pixels that have
    four neighbors, Y (Rec. 601) in [0, 1]; on bytes it would be 255 squared times as much. Noise
    counts as sharp. NaN for pictures below 3 x 3. Differentiable. Only images of one size compare.
    """
    y = luma(images)
    around = y[:, :-2, 1:-1] + y[:, 2:, 1:-1] + y[:, 1:-1, :-2] + y[:, 1:-1, 2:]
    laplacian = (around - 4 * y[:, 1:-1, 1:-1]).flatten(1)
    return (laplacian - laplacian.mean(1, keepdim=True)).square().mean(1)


sharpness.differentiable = True  # pyright: ignore[reportFunctionMemberAccess]
