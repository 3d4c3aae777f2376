"""Log-probabilities of the sampled steps."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float, Int
from torch import Tensor

from ddpo.models import Policy
from ddpo.objectives import Batch
from ddpo.rollout.sample import Sampler, stored_steps
from ddpo.rollout.trajectory import Trajectory


@dataclass
class LogProbs:
    """Columns are denoising steps.

    `logp`, and `kl` to the reference where its outputs were kept.
    """

    policy: Policy
    sampler: Sampler
    trajectory: Trajectory

    argument: ClassVar[str] = "logp"

    @property
    def names(self) -> tuple[str, ...]:
        return ("logp",) if self.trajectory.output_ref is None else ("logp", "kl")

    def columns(self, batch: Batch) -> list[int]:
        return batch.stochastic.nonzero().flatten().tolist()

    def __call__(
        self, rows: Int[Tensor, " N"], columns: Int[Tensor, " N"]
    ) -> dict[str, Float[Tensor, " N"]]:
        t = self.trajectory
        step = stored_steps(self.policy, self.sampler, t, rows, columns)
        matrices = {"logp": step.log_prob(t.latents[rows, columns + 1])}
        if t.output_ref is not None:
            reference = self.sampler.steps.step(
                columns, t.latents[rows, columns], t.output_ref[rows, columns]
            )
            matrices["kl"] = step.kl(reference)
        return matrices
