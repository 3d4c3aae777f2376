"""The noise levels of a model, and what its network predicts at them."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Real
from torch import Tensor

from ddpo.errors import UserError

Prediction = Literal["epsilon", "v_prediction", "sample", "velocity"]
"""What a network's output means: epsilon, v = signal * epsilon - noise * x_0 (Salimans and Ho
2022), x_0, or the velocity epsilon - x_0 of rectified flow."""

Kind = Literal["variance-preserving", "rectified-flow"]

MODELS: dict[Kind, str] = {
    "variance-preserving": "Stable Diffusion 1.x to XL",
    "rectified-flow": "Stable Diffusion 3, FLUX",
}
SAMPLERS: dict[Kind, str] = {
    "variance-preserving": "ddim, ddpm, euler_ancestral or lcm",
    "rectified-flow": "flow_sde, cps or flow_euler",
}

Latents = Float[Tensor, "N C H W"]


@dataclass(frozen=True)
class NoiseSchedule:
    """x_t = signal_t * x_0 + noise_t * epsilon for each timestep t of a model's training.

    signal, noise  (N,) in fp64, by timestep: sqrt(a_t) and sqrt(1 - a_t) where variance is
                   preserved
    final          signal and noise behind the last sampling step, where a sampler steps past
                   timestep 0
    prediction     what the network's output means
    spacing        number of sampling steps -> the timesteps at which they begin, noisiest first
    """

    kind: ClassVar[Kind] = "variance-preserving"

    signal: Float[Tensor, " N"]
    noise: Float[Tensor, " N"]
    final: tuple[float, float]
    prediction: Prediction
    spacing: Callable[[int], Real[Tensor, " T"]]

    def __len__(self) -> int:
        return len(self.signal)

    def to(self, device: torch.device) -> "NoiseSchedule":
        """With its tables on the device whose timesteps it will be asked about.

        What training draws is drawn on the host.
        """
        return replace(self, signal=self.signal.to(device), noise=self.noise.to(device))

    def timesteps(self, num_steps: int) -> Real[Tensor, " T"]:
        """Where sampling steps begin, noisiest first.

        Raises UserError for more steps than timesteps.
        """
        if not 1 <= num_steps <= len(self):
            raise UserError(
                f"sampler.num_steps: {num_steps} is not between 1 and the model's {len(self)}"
            )
        return self.spacing(num_steps)

    def levels(
        self, timesteps: Real[Tensor, " T"]
    ) -> tuple[Float[Tensor, " T"], Float[Tensor, " T"]]:
        """Signal and noise in fp64; those of `final` for timesteps below 0."""
        before, places = timesteps >= 0, timesteps.clamp(min=0).to(self.signal.device)
        signal = self.signal[places].to(timesteps.device)
        noise = self.noise[places].to(timesteps.device)
        return torch.where(before, signal, self.final[0]), torch.where(before, noise, self.final[1])

    def draw(
        self, source: torch.Generator, window: tuple[float, float] = (0.0, 1.0)
    ) -> Real[Tensor, ""]:
        """A timestep to train on: uniform over all of them, or over a window of them.

        A window is from 0, the least noise, to 1, the most; one timestep at least is in it.
        """
        first = min(math.floor(window[0] * len(self)), len(self) - 1)
        end = max(first + 1, math.ceil(window[1] * len(self)))
        return torch.randint(first, end, (), generator=source)

    def denoised(self, x: Latents, output: Latents, timesteps: Real[Tensor, " N"]) -> Latents:
        """The x_0 that a network's output predicts at x_t."""
        signal, noise = (
            level.float().view(-1, *[1] * (x.dim() - 1)) for level in self.levels(timesteps)
        )
        predictions = {
            "epsilon": lambda: (x - noise * output) / signal,
            "v_prediction": lambda: (signal * x - noise * output) / (signal**2 + noise**2),
            "sample": lambda: output,
            "velocity": lambda: (x - noise * output) / (signal + noise),
        }
        return predictions[self.prediction]()

    def x0_scale(self, timesteps: Real[Tensor, " N"]) -> Float[Tensor, " N"]:
        """|dx_0 / dm|: how far the x_0 that an output m predicts moves with it, at one x_t."""
        signal, noise = self.levels(timesteps)
        return {
            "epsilon": noise / signal,  # x_0 = (x_t - noise m) / signal
            "v_prediction": noise,  # x_0 = signal x_t - noise m
            "sample": torch.ones_like(noise),
            "velocity": noise / (signal + noise),  # x_0 = (x_t - noise m) / (signal + noise)
        }[self.prediction]

    def noised(
        self, x0: Latents, epsilon: Latents, timesteps: Real[Tensor, " N"]
    ) -> tuple[Latents, Latents]:
        """x_t, and what the network should then predict."""
        signal, noise = (
            level.float().view(-1, *[1] * (x0.dim() - 1)) for level in self.levels(timesteps)
        )
        targets = {
            "epsilon": lambda: epsilon,
            "v_prediction": lambda: signal * epsilon - noise * x0,
            "sample": lambda: x0,
            "velocity": lambda: epsilon - x0,
        }
        return signal * x0 + noise * epsilon, targets[self.prediction]()


@dataclass(frozen=True)
class RectifiedFlow(NoiseSchedule):
    """x_t = (1 - t) x_0 + t epsilon at the timestep N t, any real number in [0, N].

    The network predicts the velocity epsilon - x_0. Liu et al. 2023 (arXiv 2209.03003).

    drawn   (N,) the timesteps that training draws from, each as often
    """

    kind: ClassVar[Kind] = "rectified-flow"

    drawn: Float[Tensor, " N"]

    def levels(
        self, timesteps: Real[Tensor, " T"]
    ) -> tuple[Float[Tensor, " T"], Float[Tensor, " T"]]:
        """1 - t and t in fp64; those of `final` for timesteps below 0."""
        t = timesteps.double() / len(self)
        before = timesteps >= 0
        return torch.where(before, 1 - t, self.final[0]), torch.where(before, t, self.final[1])

    def draw(
        self, source: torch.Generator, window: tuple[float, float] = (0.0, 1.0)
    ) -> Real[Tensor, ""]:
        """A timestep to train on: one of `drawn`, or of those of them that are in the window.

        Without one there it is the nearest.
        """
        if window == (0.0, 1.0):  # a choice by content would wait for a GPU
            return self.drawn[torch.randint(len(self.drawn), (), generator=source)]
        low, high = (share * len(self) for share in window)
        within = self.drawn[(self.drawn >= low) & (self.drawn <= high)]
        if not len(within):
            return self.drawn[(self.drawn - (low + high) / 2).abs().argmin()]
        return within[torch.randint(len(within), (), generator=source)]


def require(kind: Kind, schedule: NoiseSchedule, sampler: str) -> None:
    """Raises UserError for a model of the other kind than a sampler's formula is made for."""
    if schedule.kind != kind:
        raise UserError(
            f"sampler.name: {sampler} samples {kind} models ({MODELS[kind]}), and this one is "
            f"{schedule.kind} ({MODELS[schedule.kind]}); take {SAMPLERS[schedule.kind]}"
        )
