"""As many as the prompt asked for? A detector counts them."""

from collections.abc import Mapping, Sequence
from threading import Lock
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torchvision.ops import nms
from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

from ddpo.images import to_pil
from ddpo.plugins.ranges import PositiveInt

from ._weights import expanded, loading
from ._weights import pretrained as load

OVERLAP = 0.5
"""Of two boxes that share more than this (intersection over union) the less certain one is the same
thing."""


class counting:
    """How far the number of things that a detector finds is from the number that was asked for.

    Reads count, and noun or animal, from the prompt's metadata; NaN without. Boxes that share more
    than half of their area count once. Not differentiable.

    `pretrained` is an OWLv2 or a GroundingDINO: a name on the Hub, or a folder. `query` is what it
    looks for, with {noun} filled in. `threshold` is the certainty, from 0 to 1, from which a box
    counts; it belongs to a detector and a style of images, so look at a few. `score` is distance
    (-|found - count|, at most 0) or exact (1 where they are equal, else 0). `batch_size` images are
    judged at once.
    """

    def __init__(
        self,
        *,
        device: torch.device | str,
        dtype: torch.dtype,
        pretrained: str = "google/owlv2-base-patch16-ensemble",
        query: str = "a photo of a {noun}",
        threshold: float = 0.3,
        score: Literal["distance", "exact"] = "distance",
        batch_size: PositiveInt = 8,
    ) -> None:
        self.query = query
        self.threshold = threshold
        self.score = score
        self.batch_size = batch_size
        with loading("counting.pretrained", pretrained):
            self.processor: Any = AutoProcessor.from_pretrained(expanded(pretrained))
            self.model = load(AutoModelForZeroShotObjectDetection, pretrained, device, dtype)
        self._lock = Lock()  # fast tokenizers refuse two threads at once

    def __call__(
        self,
        images: Float[Tensor, "B 3 H W"],
        prompts: Sequence[str],
        metadata: Sequence[Mapping[str, Any]],
    ) -> Float[Tensor, " B"]:
        nouns = [row.get("noun") or row.get("animal") for row in metadata]
        values = torch.full((len(images),), torch.nan)
        for noun in dict.fromkeys(nouns):  # a batch has one query, so that no text is padded
            rows = [
                i for i, row in enumerate(metadata) if noun and nouns[i] == noun and "count" in row
            ]
            for first in range(0, len(rows), self.batch_size):
                chunk = rows[first : first + self.batch_size]
                for i, found in zip(chunk, self.counts(images[chunk], str(noun)), strict=True):
                    off = abs(found - int(metadata[i]["count"]))
                    values[i] = float(off == 0) if self.score == "exact" else -float(off)
        return values

    @torch.no_grad()
    def counts(self, images: Float[Tensor, "B 3 H W"], noun: str) -> list[int]:
        """How many of these it finds in each image."""
        texts = [[self.query.replace("{noun}", noun)]] * len(images)
        with self._lock:
            inputs = self.processor(images=to_pil(images), text=texts, return_tensors="pt")
        outputs = self.model(**inputs.to(self.model.device, self.model.dtype))
        found = self.processor.post_process_grounded_object_detection(
            outputs, threshold=self.threshold, target_sizes=[tuple(images.shape[-2:])] * len(images)
        )
        return [len(nms(each["boxes"].float(), each["scores"].float(), OVERLAP)) for each in found]
