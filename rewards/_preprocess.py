"""The preprocessing of a checkpoint on tensors, never by Pillow: gradients reach the pixels."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import open_clip
import torch
import transformers
from jaxtyping import Float
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as transforms

from ._weights import expanded

RESAMPLE = {2: "bilinear", 3: "bicubic"}


@dataclass(frozen=True)
class Preprocess:
    """Resize (antialiased, as Pillow does), center-crop or pad, normalize, as a checkpoint says.

    `mode` is which side of the image is brought to `size`: the shortest, the longest, or both
    (squash).
    `whole` is the library's way to a whole number of pixels cut off where it is a half.
    """

    size: tuple[int, int]
    mode: Literal["shortest", "longest", "squash"]
    crop: tuple[int, int] | None
    interpolation: str
    mean: Sequence[float]
    std: Sequence[float]
    fill: float = 0.0
    whole: Callable[[float], int] = round

    def __call__(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 height width"]:
        resized, (to_height, to_width) = images.float(), self._size(*images.shape[-2:])
        how = InterpolationMode(self.interpolation)
        # width first: Pillow's order
        for size in (
            (images.shape[-2], to_width),
            (to_height, to_width),
        ):
            resized = transforms.resize(resized, list(size), how, antialias=True)
            # bicubic overshoots; bytes cannot, so Pillow clips. The gradient goes on as if it did
            # not
            resized = resized + (resized.clamp(0, 1) - resized).detach()
        if self.crop:
            (height, width), (high, wide) = resized.shape[-2:], self.crop
            up, left = self._margin(high - height), self._margin(wide - width)
            margins = (left, wide - width - left, up, high - height - up)
            resized = torch.nn.functional.pad(resized, margins, value=self.fill)
        return transforms.normalize(resized, list(self.mean), list(self.std))

    def _margin(self, missing: int) -> int:
        """The pixels before the image; below 0 they are cut off."""
        return missing // 2 if missing > 0 else -self.whole(-missing / 2)

    def _size(self, height: int, width: int) -> tuple[int, int]:
        """What an image of this size is resized to, in each library's own rounding."""
        high, wide = self.size
        if self.mode == "squash":
            return high, wide
        if self.mode == "shortest" and high == wide:
            short = min(height, width)
            return int(high * height / short), int(high * width / short)
        ratio = (max if self.mode == "longest" else min)(height / high, width / wide)
        return round(height / ratio), round(width / ratio)


def of_open_clip(model: Any) -> Preprocess:
    """What `open_clip.create_model_from_pretrained` would make a transform of."""
    cfg = open_clip.get_model_preprocess_cfg(model)
    size = cfg["size"] if isinstance(cfg["size"], Sequence) else (cfg["size"], cfg["size"])
    crop = None if cfg["resize_mode"] == "squash" else tuple(size)
    how = "bilinear" if cfg["interpolation"] == "bilinear" else "bicubic"  # "random" is training's
    fill = cfg["fill_color"] / 255
    return Preprocess(tuple(size), cfg["resize_mode"], crop, how, cfg["mean"], cfg["std"], fill)


def of_transformers(name: str) -> Preprocess:
    """What the image processor of that name or folder says.

    Raises ValueError where it does anything else.
    """
    cfg = transformers.AutoImageProcessor.from_pretrained(expanded(name)).to_dict()
    size, crop = cfg["size"], cfg.get("crop_size") or {}
    if not cfg["do_resize"] or set(size) not in ({"shortest_edge"}, {"height", "width"}):
        raise ValueError(
            f"the image processor resizes to {size}, neither to a side nor to height and width"
        )
    edge = size.get("shortest_edge")
    shape = (edge, edge) if edge else (size["height"], size["width"])
    cropped = (crop["height"], crop["width"]) if cfg.get("do_center_crop") else None
    mean, std = (
        (cfg["image_mean"], cfg["image_std"]) if cfg["do_normalize"] else ([0.0] * 3, [1.0] * 3)
    )
    how = RESAMPLE[int(cfg["resample"])]
    return Preprocess(shape, "shortest" if edge else "squash", cropped, how, mean, std, whole=int)
