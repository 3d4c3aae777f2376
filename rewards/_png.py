"""PNG files as fast as they can be written."""

import struct
import zlib

import numpy as np
from jaxtyping import UInt8


def png(pixels: UInt8[np.ndarray, "H W 3"]) -> bytes:
    """An uncompressed PNG file.

    Pillow tries five filters a row even for those: 17 ms, not 0.7, at 512x512.

    With Pillow `remote` took 1.21 times the time in process, with this 1.12; torchvision's encoder
    (1.15) is deprecated.
    """
    height, width, _ = pixels.shape
    # each row begins with the number of its filter: none
    rows = np.zeros((height, 1 + 3 * width), np.uint8)
    rows[:, 1:] = pixels.reshape(height, -1)
    header = struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)  # 8 bits a channel, RGB
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.data, 0)), (b"IEND", b""))
    pieces = [b"\x89PNG\r\n\x1a\n"]
    for kind, data in parts:
        pieces += [
            struct.pack(">I", len(data)),
            kind,
            data,
            struct.pack(">I", zlib.crc32(data, zlib.crc32(kind))),
        ]
    return b"".join(pieces)
