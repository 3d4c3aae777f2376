"""Log-probabilities of the sampled steps."""

from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ddpo.models import Policy
from ddpo.objectives import Batch
from ddpo.parallel.transfer import to_device
from ddpo.rollout.sample import Sampler, stored_steps
from ddpo.rollout.trajectory import Trajectory
from ddpo.samplers import Steps


@dataclass
class LogProbs:
    """Columns are denoising steps.

    `logp`; `kl` to the reference where its outputs were kept; where those of the policy that
    sampled were, `kl_old` to it, and the steps' `std`.
    """

    policy: Policy
    sampler: Sampler
    trajectory: Trajectory

    argument: ClassVar[str] = "logp"

    @property
    def names(self) -> tuple[str, ...]:
        of_reference = () if self.trajectory.output_ref is None else ("kl",)
        of_old = () if self.trajectory.output_old is None else ("kl_old", "std")
        return ("logp", *of_reference, *of_old)

    def columns(self, batch: Batch) -> list[int]:
        return batch.stochastic.nonzero().flatten().tolist()

    def __call__(
        self, rows: Int[Tensor, " N"], columns: Int[Tensor, " N"]
    ) -> dict[str, Float[Tensor, " N"]]:
        t = self.trajectory
        step = stored_steps(self.policy, self.sampler, t, rows, columns)
        rows, columns = to_device(torch.stack([rows, columns]), self.policy.device)
        matrices = {"logp": step.log_prob(t.latents[rows, columns + 1])}
        for name, outputs in (("kl", t.output_ref), ("kl_old", t.output_old)):
            if outputs is not None:
                x, output = t.latents[rows, columns], outputs[rows, columns]
                matrices[name] = step.kl(self.sampler.steps.step(columns, x, output))
        if t.output_old is not None:
            matrices["std"] = cast(Steps, self.sampler.steps).scored_std[columns].double()
        return matrices
