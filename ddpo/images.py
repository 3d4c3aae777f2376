"""The one image convention, Float[Tensor, "B 3 H W"] in [0, 1]; conversions out of it; the guards.

The guards are four plain statistics of a picture. None of them is a reward: a reward that is
over-optimized usually moves one of them far from where the base model had it.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

EDGE = 0.1
"""The luma step per pixel from which `edge_density` calls a pixel an edge."""

LEVELS = 8
"""The levels per channel to which `color_entropy` quantizes: 512 colors, so at most 9 bits."""


def to_uint8(images: Float[Tensor, "B 3 H W"]) -> UInt8[Tensor, "B H W 3"]:
    """Bytes, channels last: (x * 255).round() in fp32, clipped where a bare cast would wrap."""
    return (images.float() * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def to_pil(images: Float[Tensor, "B 3 H W"]) -> list[Image.Image]:
    """One RGB picture for each image."""
    return [Image.fromarray(array) for array in to_uint8(images).cpu().numpy()]


def from_pil(pictures: Sequence[Image.Image]) -> Float[Tensor, "B 3 H W"]:
    """fp32 in [0, 1] on the CPU from pictures of one size; other modes are converted to RGB."""
    arrays = [torch.from_numpy(np.array(picture.convert("RGB"))) for picture in pictures]
    return torch.stack(arrays).permute(0, 3, 1, 2).float() / 255


def luma(images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B H W"]:
    """Y = 0.299 R + 0.587 G + 0.114 B (Rec. 601), in [0, 1]."""
    return torch.einsum("bchw,c->bhw", images, images.new_tensor([0.299, 0.587, 0.114]))


def brightness(images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B"]:
    """Mean luma, in [0, 1]: 0 is a black picture, 1 a white one."""
    return luma(images).mean((1, 2))


def saturation(images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B"]:
    """Mean over pixels of (max - min) / max of R, G, B, the S of HSV (0 for black), in [0, 1]."""
    high, low = images.amax(1), images.amin(1)
    return ((high - low) / high.clamp(min=1e-6)).mean((1, 2))


def edge_density(images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B"]:
    """Share of the pixels with |grad Y| > 0.1, in [0, 1].

    grad Y(y, x) = (Y(y, x+1) - Y(y, x), Y(y+1, x) - Y(y, x)), over (H-1) x (W-1) pixels.
    """
    y = luma(images)
    right, down = y[:, :-1, 1:] - y[:, :-1, :-1], y[:, 1:, :-1] - y[:, :-1, :-1]
    return (torch.hypot(right, down) > EDGE).float().mean((1, 2))


def color_entropy(images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B"]:
    """Entropy of the color histogram: -sum_k p_k log2 p_k over 8 x 8 x 8 bins, 0 to 9 bits."""
    red, green, blue = (images * LEVELS).long().clamp(0, LEVELS - 1).flatten(2).unbind(1)
    color = (red * LEVELS + green) * LEVELS + blue
    counts = torch.zeros(len(images), LEVELS**3, device=images.device)
    share = (
        counts.scatter_add_(1, color, torch.ones_like(color, dtype=counts.dtype)) / color.shape[1]
    )
    return torch.special.entr(share).sum(1) / np.log(2)


GUARDS: dict[str, Callable[[Tensor], Tensor]] = {
    guard.__name__: guard for guard in (brightness, saturation, edge_density, color_entropy)
}
"""The statistics logged as guard/<name> for every batch of images."""
