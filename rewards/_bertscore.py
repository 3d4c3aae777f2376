"""BERTScore (Zhang et al. 2020, arXiv 1904.09675): how much of a reference does a candidate say?"""

from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from ddpo.rewards import UserError

from ._embedded import folder
from ._weights import loading, pretrained

LAYERS = {"microsoft/deberta-xlarge-mnli": 40, "emoji": 0}
"""Which hidden states tell best: for DeBERTa the choice of the authors' package. The embedded text
encoder's later layers take some wrong animals and activities for the right ones (recall 0.99), its
embeddings do not.
"""


class BertScore:
    """`encoder` is a name on the Hub, a folder, a pipeline's folder (its text encoder), or emoji.

    `layer` 0 is the embeddings; None: what LAYERS says, else the last. Always fp32: the scores of
    good and bad answers lie close together. Raises UserError where it cannot be loaded, said of the
    reward's `option`.
    """

    def __init__(
        self, encoder: str, layer: int | None, option: str, device: torch.device | str
    ) -> None:
        place = folder(encoder, "pipeline")
        parts = [str(Path(place, part)) for part in ("text_encoder", "tokenizer")]
        model, tokenizer = parts if all(Path(part).is_dir() for part in parts) else (place, place)
        with loading(option, place):
            self.tokenizer: Any = AutoTokenizer.from_pretrained(tokenizer)
            self.tokenizer.padding_side = "right"
            self.model = pretrained(AutoModel, model, device, torch.float32)
        last: int = self.model.config.num_hidden_layers
        self.layer = LAYERS.get(encoder, last) if layer is None else layer
        if not 0 <= self.layer <= last:
            raise UserError(f"{option}: {encoder} has layers 0 to {last}, not {self.layer}")
        # some tokenizers name no limit, which transformers writes as 10**30
        self.longest = min(
            self.tokenizer.model_max_length, self.model.config.max_position_embeddings
        )
        self._lock = Lock()  # fast tokenizers refuse two threads at once

    @torch.no_grad()
    def encode(
        self, texts: Sequence[str]
    ) -> tuple[Float[Tensor, "B L D"], Bool[Tensor, "B L"], Tensor]:
        """Unit vectors of the tokens.

        With them goes which are no padding, and which of those are words (0 or 1).
        """
        with self._lock:
            tokens = self.tokenizer(
                [text.strip() for text in texts],
                padding=True,
                truncation=True,
                max_length=self.longest,
                return_tensors="pt",
                return_special_tokens_mask=True,
            ).to(self.model.device)
        words = 1.0 - tokens.pop("special_tokens_mask").float()
        hidden = self.model(**tokens, output_hidden_states=True).hidden_states[self.layer]
        return torch.nn.functional.normalize(hidden, dim=-1), tokens["attention_mask"].bool(), words

    def recall(
        self, candidates: Sequence[str], references: Sequence[str], batch_size: int
    ) -> Float[Tensor, " B"]:
        """Mean over the reference's words of the largest cosine with any token of the candidate.

        Tokens that the encoder adds (of begin and end) can be matched but are no words, as in the
        authors' package: so an empty candidate has a recall. NaN for an empty reference.
        """
        found = []
        for first in range(0, len(references), batch_size):
            said, present, _ = self.encode(candidates[first : first + batch_size])
            wanted, _, words = self.encode(references[first : first + batch_size])
            cosine = torch.einsum("brd,bcd->brc", wanted, said)
            best = cosine.masked_fill(~present[:, None], -1).amax(2)
            found.append((best * words).sum(1) / words.sum(1))
        return torch.cat(found)
