"""Is the prompt the caption that the emoji world's CLIP finds nearest?"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ddpo.plugins.ranges import PositiveInt

from ._clip import Encoder
from ._embedded import folder
from ._weights import loading


class emoji_clip:  # a reward is called what its file is called
    """1 where the embedded CLIP's nearest caption has the prompt's animal and activity, else 0.

    Zero-shot over every animal with each activity and with none, 228 captions. A second judge
    beside emoji_recognition, trained on other scenes with another kind of network. Reads `animal`
    and `activity` from the prompt's metadata; NaN for a prompt without an animal. Range 0 or 1,
    higher is better; not differentiable. A toy for 64x64 emoji scenes: on other pictures it means
    nothing.

    `pretrained` is the folder of the CLIP and its captions.jsonl, or emoji, the embedded one.
    `batch_size` is how many images go through the network at once.
    """

    @torch.no_grad()
    def __init__(
        self,
        *,
        device: torch.device | str,
        dtype: torch.dtype,
        pretrained: str = "emoji",
        batch_size: PositiveInt = 64,
    ) -> None:
        option = "emoji_clip.pretrained"
        self.encoder = Encoder(
            pretrained, option=option, device=device, dtype=torch.float32, batch_size=batch_size
        )
        with loading(option, place := folder(pretrained, "clip")):
            lines = (Path(place) / "captions.jsonl").read_text(encoding="utf-8").splitlines()
            self.captions: list[Mapping[str, str | None]] = [json.loads(line) for line in lines]
            self.texts = self.encoder.texts([str(row["prompt"]) for row in self.captions])

    def __call__(
        self,
        images: Float[Tensor, "B 3 H W"],
        prompts: Sequence[str],
        metadata: Sequence[Mapping[str, Any]],
    ) -> Float[Tensor, " B"]:
        found = self.nearest(images)
        return torch.tensor(
            [_right(caption, row) for caption, row in zip(found, metadata, strict=True)]
        )

    @torch.no_grad()
    def nearest(self, images: Float[Tensor, "B 3 H W"]) -> list[Mapping[str, str | None]]:
        """The row of captions.jsonl with the highest cosine to each picture."""
        return [
            self.captions[i]
            for i in (self.encoder.images(images) @ self.texts.T).argmax(1).tolist()
        ]


def _right(found: Mapping[str, str | None], asked: Mapping[str, Any]) -> float:
    if "animal" not in asked:
        return float("nan")
    return float(found["animal"] == asked["animal"] and found["activity"] == asked.get("activity"))
