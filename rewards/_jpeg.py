"""Images as JPEG files."""

import io
from collections.abc import Iterator

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from ddpo.images import to_uint8


def jpegs(images: Float[Tensor, "B 3 H W"], quality: int) -> Iterator[bytes]:
    """Each image as Pillow's JPEG at `quality` (1 to 100) with 4:2:0 chroma."""
    for array in to_uint8(images).cpu().numpy():
        file = io.BytesIO()
        Image.fromarray(array).save(file, "JPEG", quality=quality, subsampling="4:2:0")
        yield file.getvalue()


def size_kb(images: Float[Tensor, "B 3 H W"], quality: int) -> Float[Tensor, "B"]:
    """Bytes / 1000 of each image as such a file."""
    return images.new_tensor([len(file) / 1000 for file in jpegs(images, quality)])
