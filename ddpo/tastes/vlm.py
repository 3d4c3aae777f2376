"""What a vision-language model makes of a few of a user's preferences."""

import importlib
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from ddpo.errors import UserError
from ddpo.plugins.ranges import PositiveInt
from ddpo.prompts import Prompt
from ddpo.records.files import whole
from ddpo.tastes import Known
from ddpo.tastes._pairs import Pair, Users, user_of

INSTRUCTION = (
    "These are pairs of pictures, each with the one that a person preferred first. "
    "Describe what this person likes."
)
QUESTION = "What is going on in this image?"


class vlm:
    """A taste is the hidden states of a model that reads `pairs` of the user's preferences.

    PPD (Dang et al. 2025, arXiv 2501.06655, section 4.1). A user of whom nothing was trained on has
    a taste, too: from as many pairs. A pair that is trained on is never among those that are read.

    `pretrained` is any AutoModelForImageTextToText with a chat template: a name on the Hub, a
    folder, emoji (the emoji world's captioner) or emoji_reader (its reader of looks); these two can
    only read apart.
    `pairs` is how many preferences are read.
    `contexts` is how many choices of them there are for each pair that is trained on.
    `layer` is the one whose states are taken: 0 is the embeddings, -1 the last.
    `reading` together shows all pairs in one chat, each picture after what it is; apart shows each
    picture by itself, and the taste is the mean over pairs of the chosen one's states minus those
    of the rejected one, scaled to a root mean square of 1.
    `pooling` last takes the states of the last `tokens` tokens, mean their mean over all.
    `instruction` is the text of the chat; null: to describe what the person likes, or, read apart,
    what is going on in the image.
    `cache` is a folder that keeps what was read from run to run; null: it is read again.
    """

    asks: ClassVar[str] = "pairs"

    def __init__(
        self,
        known: Known,
        *,
        pretrained: str = "llava-hf/llava-onevision-qwen2-0.5b-ov-hf",
        pairs: PositiveInt = 4,
        contexts: PositiveInt = 4,
        layer: int = -1,
        reading: Literal["together", "apart"] = "together",
        pooling: Literal["last", "mean"] = "last",
        instruction: str | None = None,
        cache: str | None = None,
    ) -> None:
        self.pretrained, self.device = pretrained, known.device
        self.count, self.contexts, self.layer = pairs, contexts, layer
        self.apart, self.pooling = reading == "apart", pooling
        self.instruction = instruction or (QUESTION if self.apart else INSTRUCTION)
        self.cache = None if cache is None else Path(cache).expanduser()
        if pooling == "mean" and known.tokens != 1:
            raise UserError(
                f"model.taste.tokens: {known.tokens}, but a mean is one token; take 1, or "
                "pooling last"
            )
        width, layers = _size(pretrained)
        if not -layers - 1 <= layer <= layers:
            raise UserError(
                f"model.taste.layer: {layer}, and {pretrained} has 0, the embeddings, to {layers}"
            )
        self.shape = (known.tokens, width)
        self.users = Users(known.prompts, known.folder, pairs)
        self._read: dict[str, Tensor] = {}

    def of(self, told: Sequence[Pair]) -> Float[Tensor, "K D"]:
        """That of a user's pairs, as `--pairs` reads them."""
        if len(told) != self.count:
            raise UserError(
                f"--pairs: {len(told)} pairs, and this model was trained to read {self.count}"
            )
        if not self.apart:
            return self._states(_chat(told, self.instruction))
        chosen = [self._states([pair.chosen, self.instruction]) for pair in told]
        rejected = [self._states([pair.rejected, self.instruction]) for pair in told]
        difference = torch.stack(chosen).mean(0) - torch.stack(rejected).mean(0)
        return difference / difference.square().mean().sqrt().clamp_min(1e-12)

    def drawn(self, prompt: Prompt, noise: torch.Generator) -> Prompt:
        return self._read_of(prompt, int(torch.randint(self.contexts, (), generator=noise)))

    def shown(self, prompt: Prompt) -> Prompt:
        return self._read_of(prompt, 0)

    def _read_of(self, prompt: Prompt, context: int) -> Prompt:
        user = user_of(prompt)
        if user not in self.users.pairs:
            return prompt
        taste = self.of(self.users.context(prompt, context))
        return replace(prompt, key=f"{prompt.key} | {user}", taste=taste)

    def _states(self, content: Sequence[Path | str]) -> Float[Tensor, "K D"]:
        """Of a chat of pictures and texts; from memory or the disk, where it was read before."""
        parts = [
            part if isinstance(part, str) else sha256(part.read_bytes()).hexdigest()
            for part in content
        ]
        identity = [self.pretrained, self.layer, self.pooling, self.shape, parts]
        key = sha256(json.dumps(identity).encode()).hexdigest()
        if key not in self._read:
            file = self.cache and self.cache / f"{key}.safetensors"
            if file and file.is_file():
                self._read[key] = load_file(file)["states"]
            else:
                self._read[key] = self._pooled(content)
                if file:
                    with whole(file) as aside:
                        save_file({"states": self._read[key]}, aside)
        return self._read[key]

    def _pooled(self, content: Sequence[Path | str]) -> Float[Tensor, "K D"]:
        shown = [part if isinstance(part, str) else _picture(part) for part in content]
        states = _loaded(self.pretrained, str(self.device)).states(shown, self.layer)
        tokens = self.shape[0]
        pooled = states.mean(0, keepdim=True) if self.pooling == "mean" else states[-tokens:]
        return pooled.float().cpu().contiguous()


def _chat(pairs: Sequence[Pair], instruction: str) -> list[Path | str]:
    """Each pair's prompt, the preferred picture, the other one; then the instruction."""
    content: list[Path | str] = []
    for number, pair in enumerate(pairs, 1):
        content += [f"Pair {number}, {pair.prompt}. Preferred:", pair.chosen]
        content += ["Not preferred:", pair.rejected]
    return [*content, instruction]


def _picture(file: Path) -> Image.Image:
    try:
        return Image.open(file).convert("RGB")
    except OSError as error:
        raise UserError(f"{file} cannot be read as an image ({error})") from error


def _models() -> Any:
    """The rewards' way to load such models; its package is found only when it is imported."""
    return importlib.import_module("ddpo.rewards._vlm")


@cache
def _loaded(pretrained: str, device: str) -> Any:
    """One model for all prompt sets of a run."""
    dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
    return _models().VLM(pretrained, "model.taste.pretrained", device, dtype)


def _size(pretrained: str) -> tuple[int, int]:
    """Numbers of a hidden state and layers, without the weights."""
    return _models().hidden_size(pretrained, "model.taste.pretrained")
