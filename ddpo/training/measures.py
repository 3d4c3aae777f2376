"""What is measured beside the loss: ratios, the divergence from the reference, memory."""

import math
import re
import resource
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ddpo.models import Policy
from ddpo.parallel import ranks
from ddpo.rollout.sample import Sampler, stored_steps
from ddpo.rollout.trajectory import Trajectory

Metrics = dict[str, float]

MOST_KL_PAIRS = 4
"""(sample, step) pairs on which the KL to the reference is measured each iteration: enough for a
trend."""

PAIRS_PER_KL_PAIR = 50
"""One of them takes two forward rows, where each pair of the iteration takes about four (sampled
once, and a forward and backward pass in the update). So measuring the KL costs about 1 % of an
iteration."""


def kl_pairs(images: int, columns: Sequence[int]) -> list[tuple[int, int]]:
    """(sample, step) pairs, evenly spread over `images` samples and the steps `columns`."""
    count = max(1, min(MOST_KL_PAIRS, images * len(columns) // PAIRS_PER_KL_PAIR))
    middles = [(2 * i + 1) / (2 * count) for i in range(count)]
    return [(int(images * middle), columns[int(len(columns) * middle)]) for middle in middles]


def spread_pairs(
    sampler: Sampler, trajectory: Trajectory, images: int
) -> tuple[Int[Tensor, " N"], Int[Tensor, " N"]]:
    """Rows and columns of this rank's share of `kl_pairs`, on the host.

    None where nothing was sampled, or without a density.
    """
    columns = sampler.steps.stochastic.nonzero().flatten().tolist()
    sampled = columns and trajectory.latents.shape[1] > 1
    mine = {sample: row for row, sample in enumerate(trajectory.samples)}
    spread = kl_pairs(images, columns) if sampled else []
    pairs = [(mine[sample], column) for sample, column in spread if sample in mine]
    rows, places = torch.tensor(pairs, dtype=torch.long).view(-1, 2).unbind(1)
    return rows, places


@torch.no_grad()
def kl_to_reference(policy: Policy, sampler: Sampler, trajectory: Trajectory, images: int) -> float:
    """Mean KL of a step to the reference per latent dimension, over a few samples and steps.

    Of all ranks; NaN where no step has a density.
    """
    rows, columns = spread_pairs(sampler, trajectory, images)
    kls: list[float] = []
    if len(rows):
        step = stored_steps(policy, sampler, trajectory, rows, columns)
        with policy.weights("base"):
            kls = step.kl(stored_steps(policy, sampler, trajectory, rows, columns)).tolist()
    everyone = ranks.gather(kls)
    return sum(everyone) / len(everyone) if everyone else math.nan


def peak_gb(device: torch.device) -> float:
    """Peak memory in GB: allocated on the GPU, or resident without one."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage's peak is the parent's where that was larger
        return int(re.findall(r"VmHWM:\s+(\d+) kB", status.read_text())[0]) * 1024 / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e9  # macOS: bytes


@dataclass
class Measured:
    """Running statistics of every pair scored in an iteration's updates; read once, at its end.

    ratio_bound  |ratio - 1| above which a pair counts into clip_frac; None: none does
    """

    ratio_bound: float | None
    sums: dict[str, Tensor] = field(default_factory=dict)
    max_dev: float = 0.0

    def add(self, logp: Float[Tensor, " N"], logp_old: Float[Tensor, " N"]) -> None:
        difference = logp.detach() - logp_old
        ratio = difference.exp()
        outside = (ratio - 1).abs() > (self.ratio_bound or torch.inf)
        rows = {
            "ratio": ratio,
            "outside": outside,
            "squared": difference.square(),
            "pairs": torch.ones_like(ratio),
        }
        for name, values in rows.items():
            self.sums[name] = self.sums.get(name, 0) + values.double().sum()
        self.sums["max_dev"] = torch.maximum(
            self.sums.get("max_dev", ratio.new_zeros(())), (ratio - 1).abs().max()
        )

    def result(self) -> dict[str, float]:
        """Over all ranks. NaN when no pair was scored, as by objectives on denoising errors."""
        rows = ranks.gather([{name: value.item() for name, value in self.sums.items()}])
        rows = [row for row in rows if row]
        if not rows:
            return dict.fromkeys(
                ("ratio/mean", "ratio/max_dev", "clip_frac", "approx_kl"), math.nan
            )
        total = {name: sum(row[name] for row in rows) for name in rows[0]}
        return {
            "ratio/mean": total["ratio"] / total["pairs"],
            "ratio/max_dev": max(row["max_dev"] for row in rows),
            "clip_frac": total["outside"] / total["pairs"],
            "approx_kl": 0.5 * total["squared"] / total["pairs"],
        }
