"""Log-probabilities of the sampled steps."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float, Int
from torch import Tensor

from ddpo import samplers
from ddpo.models import Policy
from ddpo.objectives import Batch
from ddpo.rollout.sample import Sampler, step_means
from ddpo.rollout.trajectory import Trajectory


@dataclass
class LogProbs:
    """Columns are denoising steps; `logp`, and `kl` to the reference where its means were kept."""

    policy: Policy
    sampler: Sampler
    trajectory: Trajectory

    argument: ClassVar[str] = "logp"

    @property
    def names(self) -> tuple[str, ...]:
        return ("logp",) if self.trajectory.mean_ref is None else ("logp", "kl")

    def columns(self, batch: Batch) -> list[int]:
        return batch.stochastic.nonzero().flatten().tolist()

    def __call__(self, rows: Int[Tensor, " N"], columns: Int[Tensor, " N"]) -> dict[str, Float[Tensor, " N"]]:
        t, std = self.trajectory, self.sampler.steps.std[columns]
        mean = step_means(self.policy, self.sampler, t.latents, t.prompts, rows, columns)
        found = {"logp": samplers.log_prob(t.latents[rows, columns + 1], mean, std)}
        if t.mean_ref is not None:
            found["kl"] = samplers.kl(mean, t.mean_ref[rows, columns], std)
        return found
