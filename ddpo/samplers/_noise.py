"""The noise levels of a model, and what its network predicts at them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ddpo.errors import UserError

Prediction = Literal["epsilon", "v_prediction", "sample", "velocity"]
"""What a network's output means: epsilon, v = signal * epsilon - noise * x_0 (Salimans and Ho
2022), x_0, or the velocity epsilon - x_0 of rectified flow."""

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

    signal: Float[Tensor, " N"]
    noise: Float[Tensor, " N"]
    final: tuple[float, float]
    prediction: Prediction
    spacing: Callable[[int], Int[Tensor, " T"]]

    def __len__(self) -> int:
        return len(self.signal)

    def timesteps(self, num_steps: int) -> Int[Tensor, " T"]:
        """Where sampling steps begin, noisiest first.

        Raises UserError for more steps than timesteps.
        """
        if not 1 <= num_steps <= len(self):
            raise UserError(
                f"sampler.num_steps: {num_steps} is not between 1 and the model's {len(self)}"
            )
        return self.spacing(num_steps)

    def levels(
        self, timesteps: Int[Tensor, " T"]
    ) -> tuple[Float[Tensor, " T"], Float[Tensor, " T"]]:
        """Signal and noise in fp64; those of `final` for timesteps below 0."""
        before, places = timesteps >= 0, timesteps.clamp(min=0).to(self.signal.device)
        signal = self.signal[places].to(timesteps.device)
        noise = self.noise[places].to(timesteps.device)
        return torch.where(before, signal, self.final[0]), torch.where(before, noise, self.final[1])

    def draw(self, source: torch.Generator) -> Int[Tensor, ""]:
        """A timestep to train on: uniform over all of them."""
        return torch.randint(len(self), (), generator=source)

    def noised(
        self, x0: Latents, epsilon: Latents, timesteps: Int[Tensor, " N"]
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
