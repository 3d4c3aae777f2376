"""The aesthetic reward of the DDPO paper."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ddpo.plugins.ranges import PositiveInt

from ._affine import Affine
from ._clip import Encoder
from ._embedded import folder
from ._weights import file, loading, tensors


class aesthetic:
    """How much people would like the picture, 1 to 10, by LAION's improved aesthetic predictor.

    r(x) = w . f(x) / |f(x)| + b with f the image feature of OpenAI's CLIP ViT-L/14; w and b are the
    product of the five linear layers of "sac+logos+ava1-l14-linearMSE" (the prompt plays no part;
    DDPO, arXiv 2305.13301, section 5.1). Higher is better; Stable Diffusion 1.5 begins near 5.5.
    Differentiable.

    `pretrained` is the CLIP: a name on the Hub, a folder, one of open_clip's (`ViT-L-14/openai`),
    or emoji.
    `head` is the file of the linear layers (.pth or .safetensors), or the folder or the name on the
    Hub of what holds `aesthetic-model.pth`, or emoji.
    `batch_size` is how many images go through the network at once.
    """

    differentiable = True

    def __init__(
        self,
        *,
        device: torch.device | str,
        dtype: torch.dtype,
        pretrained: str = "openai/clip-vit-large-patch14",
        head: str = "trl-lib/ddpo-aesthetic-predictor",
        batch_size: PositiveInt = 16,
    ) -> None:
        self.encoder = Encoder(
            pretrained,
            option="aesthetic.pretrained",
            device=device,
            dtype=dtype,
            batch_size=batch_size,
        )
        place = folder(head, "clip") + ("/aesthetic.safetensors" if head == "emoji" else "")
        with loading("aesthetic.head", place):
            width = self.encoder.images(torch.zeros(1, 3, 32, 32)).shape[1]
            self.head = Affine(tensors(file(place, "aesthetic-model.pth")), width, device)

    def __call__(
        self,
        images: Float[Tensor, "B 3 H W"],
        prompts: Sequence[str],
        metadata: Sequence[Mapping[str, Any]],
    ) -> Float[Tensor, " B"]:
        return self.head(self.encoder.images(images))
