"""Features of images and texts by CLIP and its kin, loaded by open_clip or by transformers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import open_clip
import torch
from jaxtyping import Float
from torch import Tensor

from ddpo.rewards import UserError

from ._chunks import cut
from ._embedded import folder
from ._towers import OpenClip, Transformers
from ._weights import loading


class Encoder:
    """Features of unit length in fp32, of images and (with a pair of towers) of texts.

    `name` is `emoji`, a folder of open_clip's or of transformers', a name on the Hub
    (transformers'), or one of open_clip's: `hf-hub:NAME`, `local-dir:FOLDER`, `ViT-L-14/openai`, an
    architecture whose weights are the file `checkpoint`. `option` is what errors call it. Raises
    UserError where it does not load, or has no text tower and must have one (`text`).
    """

    def __init__(
        self,
        name: str,
        *,
        option: str,
        device: torch.device | str,
        dtype: torch.dtype,
        batch_size: int,
        text: bool = False,
        processor: str = "",
        checkpoint: str = "",
        **preprocess: Any,
    ) -> None:
        name = folder(name, "clip")
        if (Path(name) / "open_clip_config.json").is_file():
            name = f"local-dir:{name}"
        architecture, _, tag = name.partition("/")
        known = architecture in open_clip.list_models()
        tags = open_clip.list_pretrained_tags_by_model(architecture)
        if known and not checkpoint and tag not in tags:
            raise UserError(
                f"{option}: {architecture} has no weights {tag!r}; there are: {', '.join(tags)}"
            )
        with loading(option, checkpoint or name):
            if checkpoint or known or name.startswith(("hf-hub:", "local-dir:")):
                self.towers = OpenClip(name, checkpoint, device, dtype, **preprocess)
            else:
                self.towers = Transformers(name, processor, device, dtype)
            if self.towers.tokens:
                self.towers.rows([""])  # fast tokenizers refuse two threads only while they settle
            elif text:
                raise ValueError("it has no text tower")
        self.device, self.dtype, self.batch_size = torch.device(device), dtype, batch_size

    def images(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
        """Differentiable; `batch_size` images at a time."""
        parts = images.to(self.device).split(self.batch_size)
        found = [self.towers.image(self.towers.preprocess(part).to(self.dtype)) for part in parts]
        return torch.nn.functional.normalize(torch.cat(found).float(), dim=-1)

    def texts(self, prompts: Sequence[str]) -> Float[Tensor, "B D"]:
        """Each different text once; what is longer than the context is cut."""
        rows = {text: row for row, text in enumerate(dict.fromkeys(prompts))}
        parts = cut(list(rows), self.batch_size)
        found = torch.cat([self.towers.text(part, self.device) for part in parts]).float()
        return torch.nn.functional.normalize(found[[rows[text] for text in prompts]], dim=-1)

    def cosine(
        self, images: Float[Tensor, "B 3 H W"], prompts: Sequence[str]
    ) -> Float[Tensor, " B"]:
        """Of each image with its own prompt, in [-1, 1]."""
        return (self.images(images) * self.texts(prompts)).sum(-1)
