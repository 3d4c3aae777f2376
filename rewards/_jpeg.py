"""The size of an image as a JPEG file."""

import io

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from ddpo.images import to_uint8


def size_kb(images: Float[Tensor, "B 3 H W"], quality: int) -> Float[Tensor, "B"]:
    """Bytes / 1000 of each image as Pillow's JPEG at `quality` (1 to 100) with 4:2:0 chroma."""
    sizes = []
    for array in to_uint8(images).cpu().numpy():
        file = io.BytesIO()
        Image.fromarray(array).save(file, "JPEG", quality=quality, subsampling="4:2:0")
        sizes.append(file.tell() / 1000)
    return images.new_tensor(sizes)
