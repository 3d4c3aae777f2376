"""One pass of optimizer steps over a rollout: the derivative streamed through the network.

Whatever the objective, its gradient is sum over pairs (i, t) of C[i, t] * grad M[i, t], M being the
log-probabilities log p(x_{t-1}^i | x_t^i) or the denoising errors. A separable objective is
evaluated directly on each chunk of pairs. A coupled one (which needs whole trajectories at once)
first gets all of M for the optimizer step without gradients; its derivative C is then streamed: the
memory of one chunk, whatever the number of steps and samples. Gradients of all chunks and ranks are
summed.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ddpo.objectives import Batch, Objective
from ddpo.parallel import ranks
from ddpo.rollout.sample import chunks
from ddpo.training.measures import Measured
from ddpo.training.terms import Terms

Chunk = tuple[Int[Tensor, " N"], Int[Tensor, " N"], int]
"""Local rows, columns and the number of genuine pairs of one network call."""


@dataclass
class Pass:
    """What an optimizer step works on: this rank's trajectories in their place in the batch.

    terms  of this rank's trajectories; their row r is row `terms.trajectory.samples[r]` of `batch`
    batch  every rank's, on every rank: small matrices only
    moved  whether the weights differ from those that sampled
    """

    terms: Terms
    batch: Batch
    objective: Objective
    micro_batch: int
    measured: Measured
    moved: bool = True

    @property
    def loss_scale(self) -> float:
        """A power of two that lifts gradients (1 / (pairs x D) each) into the range of fp16."""
        return 2.0**16 if self.terms.policy.half_precision else 1.0

    def chunks(self, samples: Sequence[int]) -> Iterator[Chunk]:
        """This rank's (sample, column) pairs of `samples`, in padded chunks of one shape."""
        mine = {sample: row for row, sample in enumerate(self.terms.trajectory.samples)}
        rows = [mine[sample] for sample in samples if sample in mine]
        listed = [(row, column) for row in rows for column in self.terms.columns(self.batch)]
        pairs = torch.tensor(listed, dtype=torch.long).view(-1, 2)
        for indices, genuine in chunks(len(pairs), self.micro_batch):
            chosen = pairs[indices].to(self.terms.policy.device)
            yield chosen[:, 0], chosen[:, 1], genuine

    def globally(self, rows: Int[Tensor, " N"]) -> Int[Tensor, " N"]:
        """Rows of the global batch."""
        return torch.tensor(self.terms.trajectory.samples, device=rows.device)[rows]

    def measure(
        self,
        terms: Mapping[str, Float[Tensor, " N"]],
        rows: Int[Tensor, " N"],
        columns: Int[Tensor, " N"],
        genuine: int,
    ) -> None:
        """Ratios of a chunk's first `genuine` pairs; `rows` are those of the global batch."""
        if "logp" in terms:
            old = self.batch.logp_old[rows, columns]
            self.measured.add(terms["logp"][:genuine], old[:genuine])

    def backward(self, samples: Sequence[int]) -> float:
        """Accumulate this rank's share of the gradient over `samples`.

        Returns its share of the loss.
        """
        return self._separable(samples) if self.objective.separable else self._coupled(samples)

    @ranks.together()
    def _separable(self, samples: Sequence[int]) -> float:
        pairs = len(samples) * len(self.terms.columns(self.batch))
        loss = torch.zeros((), device=self.terms.policy.device)
        for rows, columns, genuine in self.chunks(samples):
            terms, place = self.terms(rows, columns), self.globally(rows)
            batch = self.batch.pairs(place[:genuine], columns[:genuine])
            as_columns = {name: vector[:genuine, None] for name, vector in terms.items()}
            share = self._loss(as_columns, batch) * (genuine / pairs)
            (share * self.loss_scale).backward()
            self.measure(terms, place, columns, genuine)
            loss += share.detach()
        return loss.item()

    def _coupled(self, samples: Sequence[int]) -> float:
        return self._streamed(samples, self._matrices(samples)) / ranks.state().num_processes

    @ranks.together()
    def _streamed(
        self, samples: Sequence[int], matrices: Mapping[str, Float[Tensor, "B T"]]
    ) -> float:
        chosen = torch.tensor(list(samples), device=self.terms.policy.device)
        leaves = {name: matrix[chosen].requires_grad_() for name, matrix in matrices.items()}
        loss = self._loss(leaves, self.batch.rows(chosen))
        gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        coefficients = {name: torch.zeros_like(matrix) for name, matrix in matrices.items()}
        for name, gradient in zip(leaves, gradients, strict=True):
            coefficients[name][chosen] = 0.0 if gradient is None else gradient
        level = self._level(coefficients.values())
        for rows, columns, genuine in self.chunks(samples):
            place, now = (self.globally(rows), columns), self.terms(rows, columns)
            weights = {name: coefficients[name][place] for name in now}
            shares = [
                (weights[name] * value)[:genuine].sum()
                for name, value in now.items()
                if value.requires_grad
            ]
            (self.loss_scale / level * torch.stack(shares).sum()).backward()
            self.measure(now, *place, genuine)
        for parameter in self.terms.policy.parameters().values():
            if parameter.grad is not None:
                parameter.grad *= level
        return loss.item()

    def _level(self, coefficients: Iterable[Float[Tensor, "B T"]]) -> float:
        """A power of two by which coefficients (PRDP has 1 / beta) are divided to a mean's size."""
        largest = max(matrix.abs().max().item() for matrix in coefficients)
        if not self.terms.policy.half_precision or not 0 < largest < math.inf:
            return 1.0
        return 2.0 ** round(math.log2(largest * math.prod(self._shape)))

    @property
    def _shape(self) -> tuple[int, int]:
        """The shape of a matrix: the samples of all ranks, and the columns."""
        return len(self.batch.reward), len(self.batch.stochastic)

    @torch.no_grad()
    def _matrices(self, samples: Sequence[int]) -> dict[str, Float[Tensor, "B T"]]:
        """All terms of `samples`, of all ranks.

        Log-probabilities before any update are the recorded ones.
        """
        if not self.moved and self.terms.names == ("logp",):
            return {"logp": self.batch.logp_old.clone()}
        device = self.terms.policy.device
        matrices = {
            name: torch.zeros(self._shape, dtype=torch.float64, device=device)
            for name in self.terms.names
        }
        with ranks.together():
            for rows, columns, genuine in self.chunks(samples):
                place = self.globally(rows[:genuine]), columns[:genuine]
                for name, vector in self.terms(rows, columns).items():
                    matrices[name][place] = vector[:genuine]
        ranks.sum_(list(matrices.values()))  # every rank's rows are zero on the others
        return matrices

    def _loss(self, terms: Mapping[str, Tensor], batch: Batch) -> Float[Tensor, ""]:
        others = {name: matrix for name, matrix in terms.items() if name != self.terms.argument}
        return self.objective(terms[self.terms.argument], batch.with_matrices(**others))


def clip_gradients(
    parameters: Sequence[nn.Parameter], limit: float, loss_scale: float = 1.0
) -> float:
    """Sum gradients over ranks, undo `loss_scale`, and scale them to a norm of at most `limit`.

    Returns the norm before.
    """
    gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
    ranks.sum_(gradients)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.div_(loss_scale)
    return nn.utils.clip_grad_norm_(parameters, limit).item()
