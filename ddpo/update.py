"""One pass of optimiser steps over a rollout: the objective's derivative, streamed through the network.

Whatever the objective, its gradient is sum over pairs (i, t) of C[i, t] * grad log p(x_{t-1}^i | x_t^i). A
separable objective is evaluated directly on each chunk of pairs. A coupled one (which needs whole
trajectories at once) first gets all log-probabilities of the optimiser step without gradients; its derivative
C is then streamed: the memory of one chunk, whatever the number of steps and samples. Gradients of all chunks
and ranks are summed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ddpo import ranks
from ddpo.models import Policy
from ddpo.objectives import Batch, Objective
from ddpo.rollout import Sampler, chunks, step_log_probs
from ddpo.trajectory import Trajectory

Chunk = tuple[Int[Tensor, " N"], Int[Tensor, " N"], int]
"""Local rows, columns and the number of genuine pairs of one network call."""


@dataclass
class Measured:
    """Running statistics of every pair scored in an iteration's updates; read once, at its end."""

    clip_range: float | None
    sums: dict[str, Tensor] = field(default_factory=dict)
    max_dev: float = 0.0

    def add(self, logp: Float[Tensor, " N"], logp_old: Float[Tensor, " N"]) -> None:
        difference = logp.detach() - logp_old
        ratio = difference.exp()
        outside = (ratio - 1).abs() > (self.clip_range or torch.inf)
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
        """Over all ranks. Empty when no pair was scored."""
        rows = ranks.gather([{name: value.item() for name, value in self.sums.items()}])
        rows = [row for row in rows if row]
        if not rows:
            return {}
        total = {name: sum(row[name] for row in rows) for name in rows[0]}
        return {
            "ratio/mean": total["ratio"] / total["pairs"],
            "ratio/max_dev": max(row["max_dev"] for row in rows),
            "clip_frac": total["outside"] / total["pairs"],
            "approx_kl": 0.5 * total["squared"] / total["pairs"],
        }


@dataclass
class Pass:
    """What an optimiser step works on: this rank's trajectories, and their place in the global batch.

    trajectory   this rank's; its row r is row `trajectory.samples[r]` of `batch`
    batch        every rank's, on every rank: small matrices only
    """

    policy: Policy
    sampler: Sampler
    trajectory: Trajectory
    batch: Batch
    objective: Objective
    micro_batch: int
    measured: Measured

    @property
    def loss_scale(self) -> float:
        """A power of two that lifts gradients (a pair has 1 / (pairs x D) of them) into the range of fp16."""
        return 2.0**16 if self.policy.half_precision else 1.0

    def chunks(self, samples: Sequence[int]) -> Iterator[Chunk]:
        """This rank's (sample, stochastic step) pairs of `samples`, in padded chunks of one shape."""
        mine = {sample: row for row, sample in enumerate(self.trajectory.samples)}
        rows = [mine[sample] for sample in samples if sample in mine]
        columns = self.batch.stochastic.nonzero().flatten().tolist()
        listed = [(row, column) for row in rows for column in columns]
        pairs = torch.tensor(listed, dtype=torch.long).view(-1, 2)
        for indices, genuine in chunks(len(pairs), self.micro_batch):
            chosen = pairs[indices].to(self.policy.device)
            yield chosen[:, 0], chosen[:, 1], genuine

    def log_probs(self, rows: Int[Tensor, " N"], columns: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
        t = self.trajectory
        return step_log_probs(self.policy, self.sampler, t.latents, t.prompts, rows, columns)

    def globally(self, rows: Int[Tensor, " N"]) -> Int[Tensor, " N"]:
        """Rows of the global batch."""
        return torch.tensor(self.trajectory.samples, device=rows.device)[rows]

    def backward(self, samples: Sequence[int]) -> float:
        """Accumulate this rank's share of the gradient over `samples`; return its share of the loss."""
        return self._separable(samples) if self.objective.separable else self._coupled(samples)

    def _separable(self, samples: Sequence[int]) -> float:
        pairs = len(samples) * int(self.batch.stochastic.sum())
        loss = torch.zeros((), device=self.policy.device)
        for rows, columns, genuine in self.chunks(samples):
            logp = self.log_probs(rows, columns)[:genuine]
            batch = self.batch.pairs(self.globally(rows[:genuine]), columns[:genuine])
            share = self.objective(logp[:, None], batch) * (genuine / pairs)
            (share * self.loss_scale).backward()
            self.measured.add(logp, batch.logp_old[:, 0])
            loss += share.detach()
        return loss.item()

    def _coupled(self, samples: Sequence[int]) -> float:
        logp = torch.zeros_like(self.batch.logp_old)
        with torch.no_grad():
            for rows, columns, genuine in self.chunks(samples):
                place = self.globally(rows[:genuine]), columns[:genuine]
                logp[place] = self.log_probs(rows, columns)[:genuine]
                self.measured.add(logp[place], self.batch.logp_old[place])
        ranks.sum_([logp])  # every rank's rows are zero on the others
        chosen = torch.tensor(list(samples), device=logp.device)
        leaf = logp[chosen].requires_grad_()
        loss = self.objective(leaf, self.batch.rows(chosen))
        coefficient = torch.zeros_like(logp)
        coefficient[chosen] = torch.autograd.grad(loss, leaf)[0]
        for rows, columns, genuine in self.chunks(samples):
            weight = coefficient[self.globally(rows), columns]
            weight[genuine:] = 0
            (self.loss_scale * weight * self.log_probs(rows, columns)).sum().backward()
        return loss.item() / ranks.state().num_processes


def minibatches(groups: int, count: int, order: torch.Generator) -> list[list[int]]:
    """Deal groups into `count` minibatches: of each `count` consecutive groups, one to each, in random order.

    The same on any number of ranks, and even for ranks that hold contiguous blocks of groups.
    """
    dealt: list[list[int]] = [[] for _ in range(count)]
    for first in range(0, groups, count):
        places = torch.randperm(count, generator=order).tolist()
        for place, group in zip(places, range(first, groups), strict=False):
            dealt[place].append(group)
    return dealt


def clip_gradients(parameters: Sequence[nn.Parameter], limit: float, loss_scale: float = 1.0) -> float:
    """Sum gradients over ranks, take `loss_scale` out of them, scale them to a norm of at most `limit`.

    Returns the norm before.
    """
    gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
    ranks.sum_(gradients)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.div_(loss_scale)
    return nn.utils.clip_grad_norm_(parameters, limit).item()


def first_pass_deviation(work: Pass) -> float:
    """max |ratio - 1| before any update, at its shapes, on pairs of all steps and as many samples."""
    columns = work.batch.stochastic.nonzero().flatten().to(work.policy.device)
    rows = torch.arange(len(columns), device=work.policy.device) % len(work.trajectory.samples)
    worst = [0.0]
    with torch.no_grad():
        for indices, genuine in chunks(len(columns), work.micro_batch):
            logp = work.log_probs(rows[indices], columns[indices])[:genuine]
            old = work.batch.logp_old[work.globally(rows[indices]), columns[indices]][:genuine]
            worst.append(((logp - old).exp() - 1).abs().max().item())
    return torch.tensor(ranks.gather(worst), dtype=torch.float64).max().item()  # Python's max loses a NaN
