"""The one protocol of all model families.

A model is one file here, or in a plugin's `models` folder.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ddpo import plugins
from ddpo.prompts import Prompt
from ddpo.samplers import NoiseSchedule

__path__ = [*__path__, *plugins.folders("models")[1:]]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Condition(Protocol):
    """What a network is given of prompts: embeddings, or whatever else.

    Only its model looks inside.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any) -> "Condition":
        """The condition of N rows, given as a tensor, a list or a slice."""
        ...


class Policy(Protocol):
    """A diffusion model to sample from, to score and to train.

    N is any number of (sample, step) pairs.

    latent_shape   (C, H, W)
    image_size     height and width of its pictures, in pixels
    half_precision whether the network computes in bf16 or fp16
    modules        all its networks, trained or not: for counting what they take
    snapshots      values of the trained parameters by the name under which `weights` puts them in
                   force
    """

    device: torch.device
    latent_shape: tuple[int, int, int]
    image_size: int
    half_precision: bool
    modules: Sequence[torch.nn.Module]
    snapshots: dict[str, Mapping[str, Tensor]]

    @property
    def schedule(self) -> NoiseSchedule:
        """The noise levels of its training.

        Raises UserError where steps on them have no density.
        """
        ...

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """What is trained, by name, in a fixed order."""
        ...

    def condition(self, prompts: Sequence[Prompt], negative_prompt: str | None = None) -> Condition:
        """What the network is given of N prompts, made once per chunk.

        It has a gradient if one is enabled.

        `negative_prompt` is what guidance leads away from; None where there is no guidance.
        """
        ...

    def predict(
        self,
        latents: Float[Tensor, "N C H W"],
        timesteps: Int[Tensor, " N"],
        condition: Any,
        guidance_scale: float,
    ) -> Float[Tensor, "N C H W"]:
        """The network's output under guidance, in fp32.

        The arithmetic is the same with and without gradients.
        """
        ...

    def encode(self, images: Float[Tensor, "N 3 height width"]) -> Float[Tensor, "N C H W"]:
        """Latents of pictures in [0, 1]: the mode of the autoencoder's posterior, fp32."""
        ...

    def decode(self, latents: Float[Tensor, "N C H W"]) -> Float[Tensor, "N 3 height width"]:
        """Pictures in [0, 1], fp32; with a gradient if one is enabled."""
        ...

    def weights(self, name: str) -> AbstractContextManager[None]:
        """Within it, the weights of that name are in force.

        "present" are those as they are, "base" those before training; others are the `snapshots` of
        that name, as "average" or "000020". Raises UserError where there is none.
        """
        ...

    def save(self, folder: Path) -> None:
        """Write what was trained in the format that diffusers loads."""
        ...


@dataclass(frozen=True)
class Trial:
    """Pictures that compare an export with the run: DDIM of each prompt, noise from its key."""

    prompts: Sequence[Prompt]
    keys: Sequence[tuple[int, ...]]
    num_steps: int
    guidance_scale: float
    negative_prompt: str
    eta: float


class Exportable(Protocol):
    """What a policy has besides, so that `ddpo export` can write it for other programs."""

    def check_format(self, file_format: str) -> None:
        """Raises UserError for a format that is unknown, or cannot hold what was trained."""
        ...

    def export(self, file_format: str, folder: Path, name: str) -> None:
        """Write the weights in force; `name` is the run's."""
        ...

    def read_back(
        self, file_format: str, folder: Path, pretrained: str, trial: Trial
    ) -> tuple[Float[Tensor, "B 3 height width"], dict[str, Tensor]]:
        """The trial's pictures and all merged weights, by means that know nothing of this code."""
        ...

    def merged_weights(self) -> dict[str, Tensor]:
        """Its own weights likewise; the adapters are gone then."""
        ...
