"""A guard: is the picture not safe for work?"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AutoModelForImageClassification

from ddpo.plugins.ranges import PositiveInt
from ddpo.rewards import UserError

from ._preprocess import of_transformers
from ._weights import loading
from ._weights import pretrained as load


class nsfw:
    """Probability that the picture is not safe for work: for a negative weight or a `max:` gate.

    P(label | x) of an image classifier. Differentiable; a classifier under pressure is easily
    fooled, so rather keep it as a gate.

    `pretrained` is the classifier (any AutoModelForImageClassification): a name on the Hub or a
    folder.
    `label` is the name of the class whose probability is taken; upper and lower case are the same.
    `batch_size` is how many images go through the network at once.
    """

    differentiable = True

    def __init__(
        self,
        *,
        device: torch.device | str,
        dtype: torch.dtype,
        pretrained: str = "Falconsai/nsfw_image_detection",
        label: str = "nsfw",
        batch_size: PositiveInt = 16,
    ) -> None:
        with loading("nsfw.pretrained", pretrained):
            self.model = load(AutoModelForImageClassification, pretrained, device, dtype)
            self.preprocess = of_transformers(pretrained)
        numbers = {str(name).lower(): number for number, name in self.model.config.id2label.items()}
        if label.lower() not in numbers:
            raise UserError(
                f"nsfw.label: {pretrained} has no class {label!r}; it has: {', '.join(numbers)}"
            )
        self.number = numbers[label.lower()]
        self.device = torch.device(device)
        self.batch_size = batch_size

    def __call__(
        self,
        images: Float[Tensor, "B 3 H W"],
        prompts: Sequence[str],
        metadata: Sequence[Mapping[str, Any]],
    ) -> Float[Tensor, " B"]:
        parts = [self.preprocess(part) for part in images.to(self.device).split(self.batch_size)]
        logits = [self.model(pixel_values=part.to(self.model.dtype)).logits for part in parts]
        return torch.cat(logits).float().softmax(-1)[:, self.number]
