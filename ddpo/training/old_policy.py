"""The old policy of objectives that let it follow the trained one slowly (DiffusionNFT)."""

from collections.abc import Mapping
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from ddpo.models import Policy
from ddpo.objectives import Objective
from ddpo.records import checkpoint

NAME = "old"


class OldPolicy:
    """theta_old <- eta_i theta_old + (1 - eta_i) theta after iteration i, and who samples.

    Its weights are the policy's snapshot "old", kept in fp32. Without a declared share eta_i there
    is none, and the present policy samples.
    """

    def __init__(self, policy: Policy, objective: Objective) -> None:
        self.policy, self.objective = policy, objective
        self.exists = objective.old_policy is not None
        if self.exists:
            policy.snapshots[NAME] = {
                name: value.detach().clone() for name, value in policy.parameters().items()
            }

    def samples(self) -> AbstractContextManager[None]:
        """Within it, the weights that draw images are in force."""
        return self.policy.weights(NAME if self.exists else "present")

    @torch.no_grad()
    def follow(self, iteration: int) -> None:
        """After an iteration, counted from 0."""
        if self.exists:
            share = self.objective.kept_of_old(iteration)
            for name, value in self.policy.parameters().items():
                old = self.policy.snapshots[NAME][name]
                old.copy_(share * old + (1 - share) * value)

    def tensors(self) -> dict[str, Mapping[str, Tensor]]:
        """What a checkpoint keeps of it."""
        return {NAME: self.policy.snapshots[NAME]} if self.exists else {}

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        """The inverse. Raises UserError for tensors of another model."""
        if self.exists:
            checkpoint.check_parameters(self.policy.parameters(), tensors[NAME])
            for name, value in self.policy.snapshots[NAME].items():
                value.copy_(tensors[NAME][name])
