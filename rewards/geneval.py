"""Are objects, counts, colors and places those of a GenEval prompt? A detector and CLIP look."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AutoImageProcessor, AutoModelForObjectDetection

from ddpo.images import to_pil
from ddpo.plugins.ranges import PositiveInt, UnitFloat
from ddpo.rewards import UserError

from ._clip import Encoder
from ._geneval import Box, satisfied
from ._weights import expanded, loading
from ._weights import pretrained as load

COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
TEMPLATES = ("a photo of a {color} {name}", "a photo of a {color}-colored {name}")
ANYTHING = "a photo of a {color} object"

MOST = 16
"""Boxes of a class that are looked at."""

NAMES = {
    "mouse": "computer mouse",
    "remote": "tv remote",
    "keyboard": "computer keyboard",
    "motorbike": "motorcycle",
    "aeroplane": "airplane",
    "sofa": "couch",
    "pottedplant": "potted plant",
    "diningtable": "dining table",
    "tvmonitor": "tv",
}
"""What detectors of COCO's classes call them, and GenEval's name."""


class geneval:
    """1 where the picture is right by the prompt's metadata, else 0 (arXiv 2310.11513).

    Reads `include` and `exclude` of the prompt set `geneval`, or of rows written like them; NaN
    without, and for a class that the detector does not know. Evaluations show the mean of each task
    (`tag`), and their mean, the benchmark's score. Not differentiable.

    Differs: GenEval's detector is Mask2Former in mmdet; this one gives boxes without masks, so that
    colors are judged with what else is in the box, and its certainties are its own. Compare scores
    with others of this reward, not with published ones.

    `detector` is one of COCO's classes, as transformers' AutoModelForObjectDetection loads it
    (DETR, RT-DETR): a name on the Hub, or a folder. `clip` names the color of a box: CLIP, as
    clip_score has it. `threshold` is the certainty from which a box counts; `counting_threshold` is
    that for the task of counting. `batch_size` images are judged at once.
    """

    def __init__(
        self,
        *,
        device: torch.device | str,
        dtype: torch.dtype,
        detector: str = "facebook/detr-resnet-101",
        clip: str = "openai/clip-vit-large-patch14",
        threshold: UnitFloat = 0.3,
        counting_threshold: UnitFloat = 0.9,
        batch_size: PositiveInt = 8,
    ) -> None:
        self.threshold, self.counting_threshold = threshold, counting_threshold
        self.batch_size = batch_size
        with loading("geneval.detector", detector):
            self.processor: Any = AutoImageProcessor.from_pretrained(expanded(detector))
            self.model = load(AutoModelForObjectDetection, detector, device, dtype)
        labels: dict[Any, str] = dict(self.model.config.id2label)
        self.labels = {int(i): NAMES.get(name, name) for i, name in labels.items()}
        if "person" not in self.labels.values():
            some = ", ".join(list(self.labels.values())[:3])
            raise UserError(
                f"geneval.detector: {detector} finds {some}; it must know COCO's classes"
            )
        self.encoder = Encoder(
            clip,
            option="geneval.clip",
            device=device,
            dtype=dtype,
            batch_size=batch_size,
            text=True,
        )
        self.hues: dict[str, Tensor] = {}

    @torch.no_grad()
    def __call__(
        self,
        images: Float[Tensor, "B 3 H W"],
        prompts: Sequence[str],
        metadata: Sequence[Mapping[str, Any]],
    ) -> Float[Tensor, " B"]:
        known, values = {*self.labels.values()}, torch.full((len(images),), torch.nan)
        rows = [
            i
            for i, row in enumerate(metadata)
            if "include" in row and {each["class"] for each in row["include"]} <= known
        ]
        for first in range(0, len(rows), self.batch_size):
            chunk = rows[first : first + self.batch_size]
            for i, found in zip(chunk, self.boxes(images[chunk]), strict=True):
                counts = metadata[i].get("tag") == "counting"
                least = self.counting_threshold if counts else self.threshold
                objects = {
                    name: [box for box, score in each if score > least][:MOST]
                    for name, each in found.items()
                }
                image = images[i]
                values[i] = satisfied(
                    metadata[i],
                    objects,
                    lambda name, boxes, image=image: self.colors(image, name, boxes),
                )
        return values

    def boxes(self, images: Float[Tensor, "B 3 H W"]) -> list[dict[str, list[tuple[Box, float]]]]:
        """Of each image the boxes of every class with their certainty, the surest first."""
        inputs = self.processor(images=to_pil(images), return_tensors="pt")
        outputs = self.model(**inputs.to(self.model.device, self.model.dtype))
        least = min(self.threshold, self.counting_threshold)
        sizes = [tuple(images.shape[-2:])] * len(images)
        found = []
        for each in self.processor.post_process_object_detection(outputs, least, sizes):
            own: dict[str, list[tuple[Box, float]]] = {}
            for i in each["scores"].argsort(descending=True, stable=True).tolist():
                name = self.labels[int(each["labels"][i])]
                box = tuple(each["boxes"][i].tolist())
                own.setdefault(name, []).append((box, float(each["scores"][i])))
            found.append(own)
        return found

    def colors(self, image: Float[Tensor, "3 H W"], name: str, boxes: Sequence[Box]) -> list[str]:
        """The color of what is in each box, by the cosine of its picture with three sentences."""
        if name not in self.hues:
            self.hues[name] = self._hues(name)
        found = []
        for box in boxes:
            cosines = self.encoder.images(_cut(image, box)[None]) @ self.hues[name].T
            found.append(COLORS[int(cosines.argmax())])
        return found

    def _hues(self, name: str) -> Float[Tensor, "colors D"]:
        """The mean direction of each color's sentences."""
        sentences = [
            template.format(color=color, name=name)
            for color in COLORS
            for template in (*TEMPLATES, ANYTHING)
        ]
        features = self.encoder.texts(sentences).unflatten(0, (len(COLORS), -1))
        return torch.nn.functional.normalize(features.mean(1), dim=-1)


def _cut(image: Float[Tensor, "3 H W"], box: Box) -> Float[Tensor, "3 h w"]:
    """What is in the box, at least one pixel."""
    height, width = image.shape[1:]
    left, top = min(max(round(box[0]), 0), width - 1), min(max(round(box[1]), 0), height - 1)
    right, bottom = max(round(box[2]), left + 1), max(round(box[3]), top + 1)
    return image[:, top:bottom, left:right]
