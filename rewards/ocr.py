"""Can the text that was asked for be read in the image?"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ddpo.images import to_uint8
from ddpo.plugins.ranges import PositiveInt
from ddpo.rewards import UserError


class ocr:
    """1 - (edit distance to the text that was asked for) / (its length), of what PP-OCR reads.

    Range 0 to 1, higher is better.

    The text is the prompt's metadata `text`, or what stands in double quotes in the prompt; NaN
    without one. Case and spaces do not count. 1 where the text is contained in what is read; a
    distance above its length counts as its length (as in Flow-GRPO, arXiv 2505.05470). Not
    differentiable. Needs the extra ocr.

    `detector` is a PP-OCR of transformers that finds lines of text: a name on the Hub, or a folder.
    `recognizer` is one that reads them. `batch_size` images are searched at once.
    """

    def __init__(
        self,
        *,
        device: torch.device | str,
        dtype: torch.dtype,
        detector: str = "PaddlePaddle/PP-OCRv5_mobile_det_safetensors",
        recognizer: str = "PaddlePaddle/PP-OCRv5_mobile_rec_safetensors",
        batch_size: PositiveInt = 8,
    ) -> None:
        try:
            from rapidfuzz.distance.Levenshtein import distance

            from ._ppocr import Reader
        except ImportError as error:  # too old a version of transformers too
            raise UserError(f'ocr: {error}; pip install --upgrade "ddpo[ocr]"') from error
        self.distance, self.batch_size = distance, batch_size
        self.reader = Reader(detector, recognizer, device)

    def __call__(
        self,
        images: Float[Tensor, "B 3 H W"],
        prompts: Sequence[str],
        metadata: Sequence[Mapping[str, Any]],
    ) -> Float[Tensor, " B"]:
        wanted = [_plain(_asked(*each)) for each in zip(prompts, metadata, strict=True)]
        arrays, rows = to_uint8(images).cpu().numpy(), [i for i, text in enumerate(wanted) if text]
        values = torch.full((len(images),), torch.nan)
        for first in range(0, len(rows), self.batch_size):
            chunk = rows[first : first + self.batch_size]
            for i, text in zip(chunk, self.reader.texts([arrays[i] for i in chunk]), strict=True):
                values[i] = self.score(_plain(text), wanted[i])
        return values

    def score(self, read: str, wanted: str) -> float:
        """1 where `wanted` is contained, else 1 - min(distance, length) / length."""
        off = 0 if wanted in read else min(self.distance(read, wanted), len(wanted))
        return 1 - off / len(wanted)


def _asked(prompt: str, metadata: Mapping[str, Any]) -> str:
    return str(metadata.get("text") or " ".join(re.findall(r'["“]([^"“”]+)["”]', prompt)))


def _plain(text: str) -> str:
    return "".join(text.lower().split())
