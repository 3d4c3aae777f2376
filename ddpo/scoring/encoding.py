"""The image encoder by whose features an evaluation measures diversity."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ddpo.images import from_pil
from ddpo.models import EMBEDDED, Policy

Encode = Callable[[Sequence[Image.Image]], NDArray[np.float32]]
"""Pictures to unit vectors, one row each."""

ENCODED = 16
"""Pictures whose features are computed at a time."""


def encoder(features: str | None, pretrained: str, policy: Policy) -> Encode | None:
    """That of `evaluation.features`, or of the embedded world for a model of its own.

    None where the model makes no pictures, or there is no encoder. Raises UserError for one that
    cannot be loaded.
    """
    name = features or ("emoji" if pretrained in EMBEDDED else None)
    if name is None or policy.medium.name != "images":
        return None
    from ddpo.rewards._clip import Encoder  # pyright: ignore[reportMissingImports]

    where: dict[str, Any] = {"device": policy.device, "dtype": torch.float32}
    network = Encoder(name, option="evaluation.features", batch_size=ENCODED, **where)

    def encode(pictures: Sequence[Image.Image]) -> NDArray[np.float32]:
        with torch.no_grad():
            parts = [
                network.images(from_pil(pictures[i : i + ENCODED])).cpu()
                for i in range(0, len(pictures), ENCODED)
            ]
        return torch.cat(parts).numpy()

    return encode
