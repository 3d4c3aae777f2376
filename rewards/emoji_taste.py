"""How well does a picture suit one of the emoji world's synthetic users?"""

import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import avg_pool2d

from ddpo.plugins.ranges import NonNegativeInt

FRAME = 8
"""Width in pixels of the border of a 64x64 picture that counts as its background."""

BLOCK = 8
"""Side in pixels of the blocks of which a picture's size is counted."""

DISTINCT = 0.3
"""Distance in RGB from the background's median from which a block belongs to what is shown."""

FEATURES = ("brightness", "warmth", "busyness", "size")

SCALES = {
    "brightness": (0.49, 0.078),
    "warmth": (-0.022, 0.132),
    "busyness": (0.012, 0.014),
    "size": (0.124, 0.091),
}
"""Mean and standard deviation of each feature over the base model's own pictures."""

SECOND = 0.3
"""Weight of a user's second interest, where that of the first is 1."""


def taste(user: int) -> dict[str, float]:
    """What a user likes: the weight of each feature; formulas of our own, which no model is given.

    User u minds first the feature u mod 4, and likes much of it where u mod 8 is below 4, else
    little. A second feature, drawn with its sign by a generator that is seeded with u, counts 0.3.
    """
    first = FEATURES[user % 4]
    dice = random.Random(f"user {user}")
    second = dice.choice([name for name in FEATURES if name != first])
    weights = {first: 1.0 if user % 8 < 4 else -1.0, second: dice.choice([SECOND, -SECOND])}
    return {name: weights.get(name, 0.0) for name in FEATURES}


def features(images: Float[Tensor, "B 3 H W"]) -> dict[str, Float[Tensor, " B"]]:
    """Of each picture, standardized by `SCALES`.

    brightness  mean luma of the border
    warmth      red minus blue there
    busyness    mean difference in luma from one pixel to the next, there
    size        share of the picture's blocks that are no background
    """
    border = torch.ones(images.shape[2:], dtype=torch.bool, device=images.device)
    border[FRAME:-FRAME, FRAME:-FRAME] = False
    background = images[:, :, border]  # (B, 3, N)
    luma = (images * images.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1)
    steps = luma.diff(dim=2).abs().flatten(1)
    blocks = avg_pool2d(images, BLOCK)  # a busy background is even there
    beside = (border[:, 1:] & border[:, :-1]).flatten()
    median = background.median(2).values[:, :, None, None]
    raw = {
        "brightness": luma[:, border].mean(1),
        "warmth": (background[:, 0] - background[:, 2]).mean(1),
        "busyness": steps[:, beside].mean(1),
        "size": ((blocks - median).norm(dim=1) > DISTINCT).float().mean((1, 2)),
    }
    return {name: (raw[name] - mean) / std for name, (mean, std) in SCALES.items()}


def emoji_taste(
    images: Float[Tensor, "B 3 H W"],
    prompts: Sequence[str],
    metadata: Sequence[Mapping[str, Any]],
    *,
    user: NonNegativeInt | None = None,
) -> Float[Tensor, "B"]:
    """Sum over features of a user's weight times the feature, in the base's standard deviations.

    The user is the number at the end of the metadata's `user`, as 7 of u07; NaN without one. Higher
    is better; 0 is the base's mean. Not differentiable. A toy for 64x64 emoji scenes.

    `user` scores every picture for this one, whatever the metadata says; null: for its own.
    """
    values = features(images)
    numbers = [_number(row.get("user")) if user is None else user for row in metadata]
    likes = [dict.fromkeys(FEATURES, torch.nan) if n is None else taste(n) for n in numbers]
    weights = {name: images.new_tensor([row[name] for row in likes]) for name in FEATURES}
    return torch.stack([weights[name] * values[name] for name in FEATURES]).sum(0)


def _number(user: object) -> int | None:
    digits = str(user)[len(str(user).rstrip("0123456789")) :]
    return int(digits) if user is not None and digits else None
