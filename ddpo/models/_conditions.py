"""What a text encoder makes of prompts: made once per chunk, kept as far as memory allows."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

Encode = Callable[[Sequence[str]], Float[Tensor, "N L D"]]

CACHE_BYTES = 2**30
"""Bytes of embeddings kept in the main memory: about 9,000 prompts of Stable Diffusion 1.x in half
precision."""


@dataclass(frozen=True)
class TextCondition:
    """Embeddings of N prompts; of the negative prompt too, where there is guidance.

    embeds    (N, L, D)
    negative  (1, L, D), the same for all; None: without guidance
    """

    embeds: Float[Tensor, "N L D"]
    negative: Float[Tensor, "1 L D"] | None = None

    def __len__(self) -> int:
        return len(self.embeds)

    def __getitem__(self, rows: Int[Tensor, " M"] | Sequence[int] | slice) -> "TextCondition":
        return TextCondition(self.embeds[rows], self.negative)


class EmbeddingCache:
    """Embeddings of a frozen text encoder, the least recently used of them forgotten first.

    They lie in the main memory, since a data set of prompts would fill a GPU's; a chunk's go to the
    device together.
    """

    def __init__(self, encode: Encode, limit_bytes: int = CACHE_BYTES) -> None:
        self.encode, self.limit_bytes, self.bytes = encode, limit_bytes, 0
        self._embeds: OrderedDict[str, Float[Tensor, "L D"]] = OrderedDict()

    def __call__(self, texts: Sequence[str]) -> Float[Tensor, "N L D"]:
        """Rows on the main memory; what is not known yet is encoded in one call, each text once."""
        new = [text for text in dict.fromkeys(texts) if text not in self._embeds]
        known = {text: self._embeds[text] for text in texts if text in self._embeds}
        if new:
            with torch.no_grad():
                encoded = self.encode(new).cpu()
            known.update(zip(new, encoded.unbind(), strict=True))
        for text, embed in known.items():
            if text not in self._embeds:
                # a row alone; a view would keep the whole call's memory
                self._embeds[text] = embed.clone()
                self.bytes += embed.nbytes
            self._embeds.move_to_end(text)
        while self.bytes > self.limit_bytes:
            self.bytes -= self._embeds.popitem(last=False)[1].nbytes
        return torch.stack([known[text] for text in texts])
