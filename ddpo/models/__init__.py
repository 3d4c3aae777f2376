"""The one protocol of all model families.

A model is one file here, or in a plugin's `models` folder.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from ddpo import plugins
from ddpo.media import Medium
from ddpo.models._shared.families import EMBEDDED as EMBEDDED
from ddpo.prompts import Prompt

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

    medium         what it makes: how that is shown, guarded, written and read
    latent_shape   of a state: (C, H, W), or (L,) letters
    latent_dtype   of a state: fp32, or int64 where it is letter numbers
    image_size     (height, width) of its pictures in pixels; one number where they are square, 0
                   where it makes none
    half_precision whether the network computes in bf16 or fp16
    modules        all its networks, trained or not: for counting what they take
    snapshots      values of the trained parameters by the name under which `weights` puts them in
                   force
    """

    device: torch.device
    medium: Medium
    latent_shape: tuple[int, ...]
    latent_dtype: torch.dtype
    image_size: int | tuple[int, int]
    half_precision: bool
    modules: Sequence[torch.nn.Module]
    snapshots: dict[str, Mapping[str, Tensor]]

    @property
    def schedule(self) -> Any:
        """A `NoiseSchedule`, the noise levels of its training, or a `MaskSchedule` of letters.

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
        latents: Shaped[Tensor, "N *state"],
        timesteps: Shaped[Tensor, " N"],
        condition: Any,
        guidance_scale: float,
    ) -> Float[Tensor, "N *output"]:
        """The network's output under guidance, in fp32: one of the latents' shape, or (N, L, A)
        log-probabilities of letters.

        Timesteps are those of the schedule: whole numbers, or of a rectified flow any in [0, N].

        The arithmetic is the same with and without gradients.
        """
        ...

    def encode(self, images: Float[Tensor, "N *sample"]) -> Shaped[Tensor, "N *state"]:
        """The last states of samples: of pictures, the mode of the autoencoder's posterior."""
        ...

    def decode(self, latents: Shaped[Tensor, "N *state"]) -> Float[Tensor, "N *sample"]:
        """The samples of last states, as the medium has them, fp32.

        Pictures have a gradient if one is enabled.
        """
        ...

    def weights(self, name: str) -> AbstractContextManager[None]:
        """Within it, the weights of that name are in force.

        "present" are those as they are, "base" those before training; others are the `snapshots` of
        that name, as "average" or "000020". Raises UserError where there is none.
        """
        ...

    def save(self, folder: Path) -> None:
        """Write what was trained in the format that diffusers, or peft, loads."""
        ...


@dataclass(frozen=True)
class Trial:
    """Samples that compare an export with the run: of each prompt, with noise from its key.

    Pictures are drawn by DDIM with `eta`, or by Euler's method along a rectified flow.
    """

    prompts: Sequence[Prompt]
    keys: Sequence[tuple[int, ...]]
    num_steps: int
    guidance_scale: float
    negative_prompt: str
    eta: float


class Exportable(Protocol):
    """What a policy has besides, so that `ddpo export` can write it for other programs.

    reader         the programs that read the files back
    trial_sampler  the sampler of the trial, which those programs have too
    """

    reader: str
    trial_sampler: str

    def check_format(self, file_format: str) -> None:
        """Raises UserError for a format that is unknown, or cannot hold what was trained."""
        ...

    def export(self, file_format: str, folder: Path, name: str) -> None:
        """Write the weights in force; `name` is the run's."""
        ...

    def read_back(
        self, file_format: str, folder: Path, pretrained: str, trial: Trial
    ) -> tuple[Float[Tensor, "B *sample"], dict[str, Tensor]]:
        """The trial's samples and all merged weights, by means that know nothing of this code."""
        ...

    def merged_weights(self) -> dict[str, Tensor]:
        """Its own weights likewise; the adapters are gone then."""
        ...
