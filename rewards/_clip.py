"""Image and text towers of CLIP and its kin, loaded by open_clip or by transformers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import open_clip
import torch
import transformers
from jaxtyping import Float
from torch import Tensor

from ddpo.rewards import UserError

from ._embedded import folder
from ._preprocess import of_open_clip, of_transformers
from ._weights import loading, whole

PRECISIONS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


class _OpenClip:
    """`hf-hub:NAME`, `local-dir:FOLDER`, `ViT-L-14/openai`; or an architecture and a file of weights."""

    def __init__(
        self, name: str, checkpoint: str, device: torch.device | str, dtype: torch.dtype, **preprocess: Any
    ) -> None:
        model, _, tag = (name, "", "") if ":" in name else name.partition("/")
        # weights of OpenAI and some others were trained with a sigmoid's GELU; open_clip only warns
        quick = bool(tag) and open_clip.get_pretrained_cfg(model, tag).get("quick_gelu", False)
        self.model: Any = open_clip.create_model(
            model, pretrained=checkpoint or tag or None, precision=PRECISIONS[dtype], device=device,
            force_quick_gelu=quick, force_preprocess_cfg=preprocess, require_pretrained=True,
        ).eval().requires_grad_(False)  # fmt: skip
        self.tokens: Any = open_clip.get_tokenizer(model)
        self.preprocess = of_open_clip(self.model)

    def image(self, pixels: Tensor) -> Tensor:
        return self.model.encode_image(pixels)

    def text(self, prompts: list[str], device: torch.device) -> Tensor:
        return self.model.encode_text(self.tokens(prompts).to(device))


class _Transformers:
    """A name on the Hub or a folder: CLIP, SigLIP and other pairs of towers, or DINO's image tower alone.

    `processor` is where the image processor and the tokenizer are, if not beside the weights.
    """

    def __init__(self, name: str, processor: str, device: torch.device | str, dtype: torch.dtype) -> None:
        self.model = whole(transformers.AutoModel, name, device, dtype)
        self.preprocess = of_transformers(processor or name)
        self.pair = hasattr(self.model, "get_image_features")
        self.length = self.model.config.text_config.max_position_embeddings if self.pair else 0
        self.tokens: Any = (
            transformers.AutoTokenizer.from_pretrained(processor or name) if self.pair else None
        )

    def image(self, pixels: Tensor) -> Tensor:
        if self.pair:
            return self.model.get_image_features(pixel_values=pixels).pooler_output
        return self.model(pixel_values=pixels).last_hidden_state[:, 0]  # the class token

    def text(self, prompts: list[str], device: torch.device) -> Tensor:
        # always to the full length: SigLIP needs it, and an image's score must not depend on the batch
        length = {"padding": "max_length", "truncation": True, "max_length": self.length}
        rows = self.tokens(prompts, **length, return_tensors="pt")
        return self.model.get_text_features(**rows.to(device)).pooler_output


class Encoder:
    """Features of unit length in fp32, of images and (with a pair of towers) of texts.

    `name` is `emoji`, a folder of open_clip's or of transformers', a name on the Hub (transformers'), or one
    of open_clip's: `hf-hub:NAME`, `local-dir:FOLDER`, `ViT-L-14/openai`, an architecture whose weights are
    the file `checkpoint`. `option` is what errors call it. Raises UserError where it does not load.
    """

    def __init__(
        self, name: str, *, option: str, device: torch.device | str, dtype: torch.dtype, batch_size: int,
        processor: str = "", checkpoint: str = "", **preprocess: Any,
    ) -> None:  # fmt: skip
        name = folder(name, "clip")
        if (Path(name) / "open_clip_config.json").is_file():
            name = f"local-dir:{name}"
        architecture, _, tag = name.partition("/")
        known = architecture in open_clip.list_models()
        tags = open_clip.list_pretrained_tags_by_model(architecture)
        if known and not checkpoint and tag not in tags:
            raise UserError(f"{option}: {architecture} has no weights {tag!r}; there are: {', '.join(tags)}")
        if batch_size < 1:
            raise UserError(f"{option.partition('.')[0]}.batch_size: {batch_size}; take 1 or more")
        with loading(option, checkpoint or name):
            if checkpoint or known or name.startswith(("hf-hub:", "local-dir:")):
                self.towers = _OpenClip(name, checkpoint, device, dtype, **preprocess)
            else:
                self.towers = _Transformers(name, processor, device, dtype)
            if self.towers.tokens:
                self.towers.tokens([""])  # settles the tokenizer before threads share it
        self.device, self.dtype, self.batch_size = torch.device(device), dtype, batch_size

    def images(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
        """Differentiable; `batch_size` images at a time."""
        parts = images.to(self.device).split(self.batch_size)
        found = [self.towers.image(self.towers.preprocess(part).to(self.dtype)) for part in parts]
        return torch.nn.functional.normalize(torch.cat(found).float(), dim=-1)

    def texts(self, prompts: Sequence[str]) -> Float[Tensor, "B D"]:
        """Each different text once; what is longer than the context is cut."""
        rows = {text: row for row, text in enumerate(dict.fromkeys(prompts))}
        texts = list(rows)
        parts = [texts[i : i + self.batch_size] for i in range(0, len(texts), self.batch_size)]
        found = torch.cat([self.towers.text(part, self.device) for part in parts]).float()
        return torch.nn.functional.normalize(found[[rows[text] for text in prompts]], dim=-1)

    def cosine(self, images: Float[Tensor, "B 3 H W"], prompts: Sequence[str]) -> Float[Tensor, " B"]:
        """Of each image with its own prompt, in [-1, 1]."""
        return (self.images(images) * self.texts(prompts)).sum(-1)
