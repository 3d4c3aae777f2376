"""What an update is a function of besides the network: small matrices of all ranks' samples."""

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ddpo.objectives import Batch
from ddpo.rollout.trajectory import Trajectory, of_all_ranks
from ddpo.training.credit import Credit


def batch_of(
    trajectory: Trajectory,
    credit: Credit,
    group: Int[Tensor, " B"],
    device: torch.device,
    columns: Bool[Tensor, " T"] | None,
    draws: int,
) -> Batch:
    """What the samples of all ranks are credited with, and the matrices of the rollout.

    `columns` are the steps that enter the loss; None for an objective of something else, which has
    `draws` columns.
    """
    matrices = {}
    if columns is not None:
        recorded = {"logp_old": trajectory.logp_old, "logp_ref": trajectory.logp_ref}
        matrices = {
            name: of_all_ranks(matrix, device)
            for name, matrix in recorded.items()
            if matrix is not None
        }
    every = torch.ones(draws, dtype=torch.bool, device=device)
    return Batch(
        advantage=credit.advantage.to(device),
        reward=credit.reward.to(device),
        group=group.to(device),
        present=credit.present.to(device),
        stochastic=every if columns is None else columns,
        matrices=matrices,
        all_reward=credit.reward[credit.valued].to(device),
        all_group=group[credit.valued].to(device),
    )
