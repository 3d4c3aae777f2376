"""Image and text towers, as open_clip and as transformers have them, behind one face."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import open_clip
import torch
import transformers
from torch import Tensor

from ._preprocess import of_open_clip, of_transformers
from ._weights import expanded, pretrained

PRECISIONS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


class OpenClip:
    """`hf-hub:NAME`, `local-dir:FOLDER`, `ViT-L-14/openai`.

    Or it is an architecture and a file of weights.
    """

    def __init__(
        self,
        name: str,
        checkpoint: str,
        device: torch.device | str,
        dtype: torch.dtype,
        **preprocess: Any,
    ) -> None:
        model, _, tag = (name, "", "") if ":" in name else name.partition("/")
        # weights of OpenAI and some others were trained with a sigmoid's GELU; open_clip only warns
        quick = bool(tag) and open_clip.get_pretrained_cfg(model, tag).get("quick_gelu", False)
        self.load = partial(
            open_clip.create_model,
            model,
            pretrained=checkpoint or tag or None,
            force_quick_gelu=quick,
            force_preprocess_cfg=preprocess,
            require_pretrained=True,
        )
        self.model: Any = (
            self.load(precision=PRECISIONS[dtype], device=device).eval().requires_grad_(False)
        )
        self.tokens: Any = open_clip.get_tokenizer(model)
        self.preprocess = of_open_clip(self.model)

    def image(self, pixels: Tensor) -> Tensor:
        return self.model.encode_image(pixels)

    def text(self, prompts: Sequence[str], device: torch.device) -> Tensor:
        return self.model.encode_text(self.rows(prompts).to(device))

    def rows(self, prompts: Sequence[str]) -> Tensor:
        return self.tokens(list(prompts))

    def scale(self) -> float:
        """What the cosine was multiplied with in training.

        In half precision ln 100 would give 98.9.
        """
        scale: Any = self.model.logit_scale
        if scale.dtype != torch.float32:  # with a network of timm's it was cast too
            scale = self.load(precision="fp32", device="cpu").logit_scale
        return scale.exp().item()


class Transformers:
    """A name on the Hub or a folder: CLIP, SigLIP (pairs of towers), or DINO's image tower alone.

    `processor` is where the image processor and the tokenizer are, if not beside the weights.
    """

    def __init__(
        self, name: str, processor: str, device: torch.device | str, dtype: torch.dtype
    ) -> None:
        self.load = partial(pretrained, transformers.AutoModel, name)
        self.model = self.load(device, dtype)
        self.preprocess = of_transformers(processor or name)
        self.pair = hasattr(self.model, "get_image_features")
        self.length = self.model.config.text_config.max_position_embeddings if self.pair else 0
        self.tokens: Any = (
            transformers.AutoTokenizer.from_pretrained(expanded(processor or name))
            if self.pair
            else None
        )

    def image(self, pixels: Tensor) -> Tensor:
        if self.pair:
            return self.model.get_image_features(pixel_values=pixels).pooler_output
        return self.model(pixel_values=pixels).last_hidden_state[:, 0]  # the class token

    def text(self, prompts: Sequence[str], device: torch.device) -> Tensor:
        return self.model.get_text_features(**self.rows(prompts).to(device)).pooler_output

    def rows(self, prompts: Sequence[str]) -> Any:
        # always to the full length: SigLIP needs it, and an image's score must not depend on the
        # batch
        length = {"padding": "max_length", "truncation": True, "max_length": self.length}
        return self.tokens(list(prompts), **length, return_tensors="pt")

    def scale(self) -> float:
        """What the cosine was multiplied with in training.

        In half precision ln 100 would give 98.9.
        """
        whole = self.model if self.model.dtype == torch.float32 else self.load("cpu", torch.float32)
        return whole.logit_scale.exp().item()
