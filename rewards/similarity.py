"""How much an image looks like a reference."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from ddpo.images import from_pil
from ddpo.plugins.ranges import PositiveInt
from ddpo.rewards import UserError

from ._clip import Encoder

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


class similarity:
    """Mean cosine of the image's features and the reference images', in [-1, 1].

    It is 1 for the same image.

    r(x) = mean over the references y of cos(f(x), f(y)), higher is more alike. Differentiable. NaN
    for a prompt without a reference.

    `reference` is an image file or a folder of them; without it, each prompt's metadata field
    `reference`.
    `pretrained` is the network of the features: DINOv2 (its class token: looks), CLIP (subject and
    style), by a name on the Hub, a folder, one of open_clip's, or emoji (the embedded CLIP).
    `batch_size` is how many images go through the network at once.
    """

    differentiable = True

    def __init__(
        self,
        *,
        device: torch.device | str,
        dtype: torch.dtype,
        reference: str = "",
        pretrained: str = "facebook/dinov2-base",
        batch_size: PositiveInt = 16,
    ) -> None:
        self.reference = reference
        self.encoder = Encoder(
            pretrained,
            option="similarity.pretrained",
            device=device,
            dtype=dtype,
            batch_size=batch_size,
        )
        self.known: dict[str, Tensor] = {}
        if reference:
            self._features(reference)

    def __call__(
        self,
        images: Float[Tensor, "B 3 H W"],
        prompts: Sequence[str],
        metadata: Sequence[Mapping[str, Any]],
    ) -> Float[Tensor, " B"]:
        found = self.encoder.images(images)
        absent = torch.full_like(found[0], torch.nan)
        wanted = [self.reference or row.get("reference", "") for row in metadata]
        means = [self._features(place) if place else absent for place in wanted]
        return (found * torch.stack(means)).sum(-1)

    def _features(self, place: str) -> Float[Tensor, " D"]:
        """The mean feature of the references, whose product with a feature is the mean cosine."""
        if place not in self.known:
            path = Path(place).expanduser()
            inside = sorted(path.iterdir()) if path.is_dir() else [path]
            files = [file for file in inside if file.suffix.lower() in SUFFIXES or file == path]
            if not files:
                raise UserError(
                    f"similarity.reference: {place} holds no image ({', '.join(SUFFIXES)})"
                )
            with torch.no_grad():
                self.known[place] = torch.cat(
                    [self.encoder.images(_read(file)) for file in files]
                ).mean(0)
        return self.known[place]


def _read(file: Path) -> Float[Tensor, "1 3 H W"]:
    try:
        with Image.open(file) as picture:
            return from_pil([picture])
    except (OSError, Image.DecompressionBombError) as error:
        raise UserError(
            f"similarity.reference: {file} cannot be read as an image ({error})"
        ) from error
