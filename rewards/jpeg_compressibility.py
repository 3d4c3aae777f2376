"""The compressibility reward of the DDPO paper."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from ddpo.plugins.ranges import JpegQuality

from ._jpeg import size_kb


def jpeg_compressibility(
    images: Float[Tensor, "B 3 H W"],
    prompts: Sequence[str],
    metadata: Sequence[Mapping[str, Any]],
    *,
    quality: JpegQuality = 95,
) -> Float[Tensor, "B"]:
    """Minus the size of the image as a JPEG, in kB (1000 bytes): easy to compress is good.

    r(x) = -len(JPEG(x, quality)) / 1000 (DDPO, arXiv 2305.13301, section 5.1). Below 0.
    Only images of one size compare.
    """
    return -size_kb(images, quality)
