"""ImageReward: what people prefer of images of one prompt, by a tuned BLIP."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from torch import Tensor
from transformers import AutoTokenizer

from ddpo.plugins.ranges import PositiveInt

from ._affine import Affine
from ._blip import blip
from ._chunks import cut
from ._preprocess import Preprocess
from ._weights import expanded, file, loading, tensors

MEAN, STD = 0.16717362830052426, 1.0333394966054072
"""Of the raw reward over the authors' data: what is published is (r - MEAN) / STD."""

TOKENS = 35
"""What the authors cut a prompt to, [CLS] and [SEP] included."""


class image_reward:
    """ImageReward, a BLIP-L tuned on rankings of 137,000 pairs: normalized, about -2 to 2.

    r(x, c) = (head(BLIP(x, c)) - 0.167) / 1.033 of the text's first token, which attends to the
    image (Xu et al. 2023, arXiv 2304.05977). Higher is better. Differentiable. A prompt beyond 35
    tokens is cut.

    `pretrained` is what holds `ImageReward.pt` and `med_config.json`: a name on the Hub or a
    folder.
    `tokenizer` is BERT's: a name on the Hub or a folder.
    `batch_size` is how many images go through the network at once.
    """

    differentiable = True

    def __init__(
        self,
        *,
        device: torch.device | str,
        dtype: torch.dtype,
        pretrained: str = "THUDM/ImageReward",
        tokenizer: str = "google-bert/bert-base-uncased",
        batch_size: PositiveInt = 8,
    ) -> None:
        self.device, self.batch_size = torch.device(device), batch_size
        with loading("image_reward.pretrained", pretrained):
            state = tensors(file(pretrained, "ImageReward.pt"))
            text = json.loads(Path(file(pretrained, "med_config.json")).read_text())
            head = {key[4:]: value for key, value in state.items() if key.startswith("mlp.")}
            towers = {key[5:]: value for key, value in state.items() if key.startswith("blip.")}
            self.model: Any = blip(towers, text).to(device, dtype).eval().requires_grad_(False)
            self.head = Affine(head, text["hidden_size"], device)
        with loading("image_reward.tokenizer", tokenizer):
            self.tokenizer: Any = AutoTokenizer.from_pretrained(expanded(tokenizer))
            self.tokens([""])  # settles it before threads share it
        size = self.model.config.vision_config.image_size
        mean, std = OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
        self.preprocess = Preprocess((size, size), "shortest", (size, size), "bicubic", mean, std)

    def tokens(self, prompts: Sequence[str]) -> Any:
        cut = {"padding": "max_length", "truncation": True, "max_length": TOKENS}
        return self.tokenizer(list(prompts), **cut, return_tensors="pt").to(self.device)

    def __call__(
        self,
        images: Float[Tensor, "B 3 H W"],
        prompts: Sequence[str],
        metadata: Sequence[Mapping[str, Any]],
    ) -> Float[Tensor, " B"]:
        parts = images.to(self.device).split(self.batch_size)
        texts = cut(prompts, self.batch_size)
        return torch.cat([self._score(*each) for each in zip(parts, texts, strict=True)])

    def _score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        seen = self.model.vision_model(
            self.preprocess(images).to(self.model.dtype)
        ).last_hidden_state
        rows = self.tokens(prompts)
        read = self.model.text_encoder(
            input_ids=rows.input_ids, attention_mask=rows.attention_mask, encoder_hidden_states=seen
        )
        return (self.head(read.last_hidden_state[:, 0]) - MEAN) / STD
