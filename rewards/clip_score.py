"""How well an image and its prompt agree, by CLIP."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ddpo.plugins.ranges import PositiveInt

from ._clip import Encoder


class clip_score:
    """Cosine of CLIP's features of image and prompt: photographs with captions have 0.2 to 0.35.

    r(x, c) = f(x) . g(c) / (|f(x)| |g(c)|), higher is better. Differentiable. A prompt beyond
    CLIP's 77 tokens is cut; an empty one is scored as the empty text.
    Differs: CLIPScore (Hessel et al. 2021, arXiv 2104.08718) is 2.5 max(r, 0), torchmetrics'
    is 100 max(r, 0).

    `pretrained` is the CLIP: a name on the Hub, a folder, one of open_clip's (`ViT-L-14/openai`),
    or emoji.
    `batch_size` is how many images go through the network at once.
    """

    differentiable = True

    def __init__(
        self,
        *,
        device: torch.device | str,
        dtype: torch.dtype,
        pretrained: str = "openai/clip-vit-large-patch14",
        batch_size: PositiveInt = 16,
    ) -> None:
        self.encoder = Encoder(
            pretrained,
            option="clip_score.pretrained",
            device=device,
            dtype=dtype,
            batch_size=batch_size,
            text=True,
        )

    def __call__(
        self,
        images: Float[Tensor, "B 3 H W"],
        prompts: Sequence[str],
        metadata: Sequence[Mapping[str, Any]],
    ) -> Float[Tensor, " B"]:
        return self.encoder.cosine(images, prompts)
