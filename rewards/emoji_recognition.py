"""Does the emoji world's captioner see what the prompt asked for?"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ddpo.images import to_pil

from ._vlm import EMBEDDED_QUESTION, VLM


class emoji_recognition:  # a reward is called what its file is called
    """1 where the embedded captioner names the prompt's animal, and its activity if any, else 0.

    Reads `animal` and `activity` from the prompt's metadata; NaN for a prompt without an animal.
    `captioner` is a folder with another captioner of this kind. Range 0 or 1, higher is better; not
    differentiable. A toy judge for 64x64 emoji scenes: on other pictures it means nothing.
    """

    def __init__(
        self, *, device: torch.device | str, dtype: torch.dtype, captioner: str = ""
    ) -> None:
        name = captioner or "emoji"
        self.captioner = VLM(name, "emoji_recognition.captioner", device, torch.float32)

    def __call__(
        self,
        images: Float[Tensor, "B 3 H W"],
        prompts: Sequence[str],
        metadata: Sequence[Mapping[str, Any]],
    ) -> Float[Tensor, " B"]:
        said = self.captions(images)
        return torch.tensor([_right(text, row) for text, row in zip(said, metadata, strict=True)])

    def captions(self, images: Float[Tensor, "B 3 H W"]) -> list[str]:
        """What the captioner says of each picture, greedily decoded."""
        pictures = to_pil(images)
        return self.captioner.answers(
            pictures, [EMBEDDED_QUESTION] * len(pictures), 10, len(pictures)
        )


def _right(said: str, asked: Mapping[str, Any]) -> float:
    if "animal" not in asked:
        return float("nan")
    activity = asked.get("activity")
    return float(asked["animal"] in said.split() and (activity is None or said.endswith(activity)))
