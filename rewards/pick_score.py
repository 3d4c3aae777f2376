"""Which of two images people would pick for the prompt: PickScore."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ddpo.plugins.ranges import PositiveInt

from ._clip import Encoder
from ._weights import loading


class pick_score:
    """PickScore, a CLIP-H tuned on half a million choices between two images: about 18 to 24.

    r(x, c) = s cos(f(x), g(c)) with the model's own scale s, near 100 (Kirstain et al. 2023, arXiv
    2305.01569); exp(r) / (exp(r) + exp(r')) is the probability that x is picked over x'. Higher is
    better. Differentiable. Others divide it by 26.

    `pretrained` is the CLIP: a name on the Hub, a folder, one of open_clip's, or emoji.
    `processor` is where its image processor and its tokenizer are: a name on the Hub or a folder
    (open_clip's models bring their own).
    `batch_size` is how many images go through the network at once.
    """

    differentiable = True

    def __init__(
        self,
        *,
        device: torch.device | str,
        dtype: torch.dtype,
        pretrained: str = "yuvalkirstain/PickScore_v1",
        processor: str = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
        batch_size: PositiveInt = 8,
    ) -> None:
        self.encoder = Encoder(
            pretrained,
            option="pick_score.pretrained",
            device=device,
            dtype=dtype,
            batch_size=batch_size,
            text=True,
            processor=processor,
        )
        with loading("pick_score.pretrained", pretrained):
            self.scale = self.encoder.towers.scale()

    def __call__(
        self,
        images: Float[Tensor, "B 3 H W"],
        prompts: Sequence[str],
        metadata: Sequence[Mapping[str, Any]],
    ) -> Float[Tensor, " B"]:
        return self.scale * self.encoder.cosine(images, prompts)
