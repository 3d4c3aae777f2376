"""Every sample of an evaluation once: kept under what it depends on, whole or not at all."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ddpo.media import Medium
from ddpo.prompts import Prompt
from ddpo.records.cache import Cache


@dataclass(frozen=True)
class Store:
    """Samples in `folder`, one file each, and the scores and divergences known of them.

    identity  what all samples of a column have in common: the digest of the weights, the sampler,
              the size, and what else decides a pixel
    base      the digest of the weights to which divergences are measured, where the weights do not
              say them
    """

    folder: Path
    medium: Medium
    identity: Mapping[str, Any]
    base: str = ""

    def key(self, prompt: Prompt, seed: int) -> str:
        """Under which the sample of this prompt and seed is kept; metadata may reach the model."""
        facts = [dict(self.identity), prompt.text, dict(prompt.metadata), prompt.key, seed]
        text = json.dumps(facts, sort_keys=True, default=repr)
        return hashlib.sha256(text.encode()).hexdigest()[:40]

    def file(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}{self.medium.suffix}"

    def load(self, key: str) -> Tensor | None:
        """The sample as a batch of one; None where it is not there, or damaged."""
        try:
            return self.medium.reread(self.file(key).read_bytes())
        except (OSError, ValueError):
            return None

    def save(self, keys: Iterable[str], samples: Tensor) -> None:
        """A process that is killed in between leaves each sample whole, or not there."""
        for key, content in zip(keys, self.medium.kept(samples), strict=True):
            file = self.file(key)
            file.parent.mkdir(parents=True, exist_ok=True)
            aside = file.with_name(f".{key}.{os.getpid()}.writing")
            aside.write_bytes(content)
            os.replace(aside, file)

    def divergences(self, keys: Iterable[str]) -> dict[str, float]:
        """The KL of trajectories to the base, where it was measured."""
        names = {self._of_divergence(key): key for key in keys}
        known = Cache(str(self.folder)).get([*names])
        return {names[name]: value for name, value in known.items()}

    def save_divergences(self, values: Mapping[str, float]) -> None:
        Cache(str(self.folder)).put({self._of_divergence(k): v for k, v in values.items()})

    def _of_divergence(self, key: str) -> bytes:
        to = f" to {self.base}" if self.base else ""
        return hashlib.sha256(f"kl of {key}{to}".encode()).digest()


def digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """A hash of names, types, shapes and values, whatever file or device these come from."""
    found = hashlib.blake2b(digest_size=20)
    for name, tensor in tensors:
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        values = tensor.detach().contiguous().cpu()
        found.update(
            values.flatten().view(torch.uint8).numpy().tobytes() if values.numel() else b""
        )
    return found.hexdigest()


def weights_of(modules: Iterable[nn.Module]) -> Iterable[tuple[str, Tensor]]:
    """All weights of networks without their adapters, by the names that these had without one."""
    for number, module in enumerate(modules):
        for name, value in module.state_dict().items():
            if "lora_" not in name:
                yield f"{number}.{name.replace('.base_layer.', '.')}", value
