"""What text encoders make of prompts: made once per chunk, kept as far as memory allows."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ddpo.parallel.transfer import to_device

Encoded = tuple[Tensor, ...]
"""The embeddings of N texts, (N, L, D), and after them, where there are any, their pooled vectors,
(N, P)."""

Encode = Callable[[Sequence[str]], Encoded]

CACHE_BYTES = 2**30
"""Bytes of embeddings kept in the main memory: about 9,000 prompts of Stable Diffusion 1.x in half
precision."""


@dataclass(frozen=True)
class TextCondition:
    """What a network is given of N prompts; of the negative prompt too, where there is guidance.

    embeds    (N, L, D)
    pooled    (N, P), one vector for a whole prompt; None: the network has no use for it
    negative  the same of one negative prompt, for all rows; None: without guidance
    taste     (N, K, D) of the users for whom the prompts are rendered, zeros for nobody; None: the
              network has no layers for it
    """

    embeds: Float[Tensor, "N L D"]
    pooled: Float[Tensor, "N P"] | None = None
    negative: TextCondition | None = None
    taste: Float[Tensor, "N K D"] | None = None

    def __len__(self) -> int:
        return len(self.embeds)

    def __getitem__(self, rows: Int[Tensor, " M"] | Sequence[int] | slice) -> TextCondition:
        pooled = None if self.pooled is None else self.pooled[rows]
        taste = None if self.taste is None else self.taste[rows]
        return TextCondition(self.embeds[rows], pooled, self.negative, taste)

    def guided(self) -> TextCondition:
        """2 N rows: the negative prompt's for every row, to nobody's taste, then the prompts'."""
        negative = self.negative
        assert negative is not None
        embeds = torch.cat([negative.embeds.expand_as(self.embeds), self.embeds])
        pooled = taste = None
        if self.pooled is not None and negative.pooled is not None:
            pooled = torch.cat([negative.pooled.expand_as(self.pooled), self.pooled])
        if self.taste is not None:
            taste = torch.cat([torch.zeros_like(self.taste), self.taste])
        return TextCondition(embeds, pooled, taste=taste)

    def added(self, **others: Any) -> dict[str, Any]:
        """What a UNet is given beside the text: `others`, and a taste as IP-Adapter's picture."""
        return others if self.taste is None else {**others, "image_embeds": [self.taste]}


class EmbeddingCache:
    """What frozen text encoders say, the least recently used of it forgotten first.

    It lies in the main memory, since a data set of prompts would fill a GPU's; a chunk's goes to
    the device together.
    """

    def __init__(self, encode: Encode, limit_bytes: int = CACHE_BYTES) -> None:
        self.encode, self.limit_bytes, self.bytes = encode, limit_bytes, 0
        self._rows: OrderedDict[str, Encoded] = OrderedDict()

    def __call__(self, texts: Sequence[str]) -> Encoded:
        """Rows in the main memory; what is not known yet is encoded in one call, each text once."""
        new = [text for text in dict.fromkeys(texts) if text not in self._rows]
        known = {text: self._rows[text] for text in texts if text in self._rows}
        if new:
            with torch.no_grad():
                encoded = [part.cpu() for part in self.encode(new)]
            known.update(zip(new, zip(*encoded, strict=True), strict=True))
        for text, row in known.items():
            if text not in self._rows:
                # a row alone; a view would keep the whole call's memory
                self._rows[text] = tuple(part.clone() for part in row)
                self.bytes += _bytes(row)
            self._rows.move_to_end(text)
        while self.bytes > self.limit_bytes:
            self.bytes -= _bytes(self._rows.popitem(last=False)[1])
        return tuple(
            torch.stack(parts) for parts in zip(*(known[text] for text in texts), strict=True)
        )


def _bytes(row: Encoded) -> int:
    return sum(part.nbytes for part in row)


def tokens(tokenizer: Any, texts: Sequence[str], length: int | None = None) -> Int[Tensor, "N L"]:
    """Padded or cut to `length`, by default as many as the tokenizer's model reads."""
    return tokenizer(
        list(texts),
        padding="max_length",
        truncation=True,
        max_length=length or tokenizer.model_max_length,
        return_tensors="pt",
    ).input_ids


def penultimate(
    encoder: Any, tokenizer: Any, texts: Sequence[str], length: int | None = None
) -> tuple[Float[Tensor, "N L D"], Float[Tensor, "N ..."]]:
    """A CLIP's last but one layer, of which SDXL and SD 3 were made; and its first output.

    That is the projected vector of the whole text where the encoder has a projection.
    """
    ids = to_device(tokens(tokenizer, texts, length), next(encoder.parameters()).device)
    output = encoder(ids, output_hidden_states=True)
    return output.hidden_states[-2], output[0]
