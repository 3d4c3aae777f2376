"""The toy's taste: an aesthetic rating of a 64x64 picture by a formula, for a head to learn.

Nobody was asked. Colorful pictures rate high, and a subject that stands out from calm
surroundings.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from .scenes import SIZE


def look(images: Float[Tensor, "B 3 64 64"]) -> Float[Tensor, "B 3"]:
    """Three properties of pictures in [0, 1], each from 0 to 1.

    Colorfulness (Hasler and Suesstrunk 2003) / 100, capped. Contrast: the distance in RGB between
    the mean colors of the middle (a disc of radius 14) and of the surroundings (outside radius
    26) / 0.6, capped. Calm: 1 - 4 x the standard deviation of the surroundings, floored.
    """
    red, green, blue = (255 * images).flatten(2).unbind(1)
    opponents = torch.stack([red - green, (red + green) / 2 - blue])
    deviation, mean = opponents.std(2).norm(dim=0), opponents.mean(2).norm(dim=0)
    offset = torch.arange(SIZE, device=images.device) - (SIZE - 1) / 2
    radius = (offset.square()[:, None] + offset.square()).sqrt()
    middle, around = images[:, :, radius < 14], images[:, :, radius > 26]
    contrast = (middle.mean(2) - around.mean(2)).norm(dim=1) / 0.6
    calm = 1 - 4 * around.std(2).mean(1)
    return torch.stack([(deviation + 0.3 * mean) / 100, contrast, calm], 1).clamp(0, 1)


def rating(images: Float[Tensor, "B 3 64 64"]) -> Float[Tensor, " B"]:
    """From 1 to 10: 1 + 3 (colorfulness + contrast + calm)."""
    return 1 + 3 * look(images).sum(1)
