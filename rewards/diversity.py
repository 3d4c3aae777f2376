"""How far an image is from the other images of its prompt."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ddpo.plugins.ranges import PositiveInt

from ._clip import Encoder


class diversity:
    """Mean distance of an image to the others of its prompt's group, in [0, 2].

    It is 0 where all are the same.

    r(x_i) = 1 / (G - 1) sum over j != i of 1 - cos(f(x_i), f(x_j)); the mean over the group is the
    mean pairwise distance. Higher is more diverse. Differentiable. NaN for an image that is alone.

    `pretrained` is the network of the features: DINOv2 (its class token: looks), CLIP (subject and
    style), by a name on the Hub, a folder, one of open_clip's, or emoji (the embedded CLIP).
    `batch_size` is how many images go through the network at once.
    """

    differentiable = True
    groupwise = True

    def __init__(
        self,
        *,
        device: torch.device | str,
        dtype: torch.dtype,
        pretrained: str = "facebook/dinov2-base",
        batch_size: PositiveInt = 16,
    ) -> None:
        self.encoder = Encoder(
            pretrained,
            option="diversity.pretrained",
            device=device,
            dtype=dtype,
            batch_size=batch_size,
        )

    def __call__(
        self,
        images: Float[Tensor, "B 3 H W"],
        prompts: Sequence[str],
        metadata: Sequence[Mapping[str, Any]],
    ) -> Float[Tensor, " B"]:
        features = self.encoder.images(images)
        others = ~torch.eye(len(features), dtype=torch.bool, device=features.device)
        distance = (1 - features @ features.T) * others
        return distance.sum(1) / others.sum(1)  # alone: 0 / 0
