"""One pass of optimizer steps over a rollout: the derivative streamed through the network.

Whatever the objective, its gradient is sum over pairs (i, t) of C[i, t] * grad M[i, t], M being the
log-probabilities log p(x_{t-1}^i | x_t^i) or the denoising errors. A separable objective is
evaluated directly on each chunk of pairs. A coupled one (which needs whole trajectories at once)
first gets all of M for the optimizer step without gradients; its derivative C is then streamed: the
memory of one chunk, whatever the number of steps and samples. Gradients of all chunks and ranks are
summed.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ddpo.errors import UserError
from ddpo.objectives import Batch, Objective
from ddpo.parallel import pieces, ranks
from ddpo.parallel.transfer import to_device
from ddpo.rollout.gradients import ImageGradients
from ddpo.rollout.sample import Sampler, chunks
from ddpo.training.halving import PAIRS, Halving
from ddpo.training.measures import Measured, spread_pairs
from ddpo.training.terms import Terms

Result = TypeVar("Result")


def loss_scale(half_precision: bool) -> float:
    """A power of two that lifts gradients (1 / (pairs x D) each) into the range of fp16."""
    return 2.0**16 if half_precision else 1.0


class Chunk(NamedTuple):
    """The (sample, column) pairs of one network call, filled up by repetition.

    rows, columns  of this rank's trajectories, on the host
    place          rows of the global batch, and the columns, on the device
    genuine        how many are no repetition
    """

    rows: Int[Tensor, " N"]
    columns: Int[Tensor, " N"]
    place: tuple[Int[Tensor, " N"], Int[Tensor, " N"]]
    genuine: int


@dataclass
class Pass:
    """What an optimizer step works on: this rank's trajectories in their place in the batch.

    terms  of this rank's trajectories; their row r is row `terms.trajectory.samples[r]` of `batch`
    batch  every rank's, on every rank: small matrices only
    gradients  of the images' log-probabilities, collected while they were sampled: they make the
               update at the weights that sampled
    moved  whether the weights differ from those that sampled
    halving  what halves the micro-batch where memory runs out
    """

    terms: Terms
    batch: Batch
    objective: Objective
    micro_batch: int
    measured: Measured
    gradients: ImageGradients | None = None
    moved: bool = True
    halving: Halving = field(default_factory=Halving)

    @property
    def loss_scale(self) -> float:
        """By which gradients are larger than those of the loss."""
        return loss_scale(self.terms.policy.half_precision)

    def chunks(self, samples: Sequence[int]) -> Iterator[Chunk]:
        """This rank's (sample, column) pairs of `samples`, in padded chunks of one shape."""
        mine = {sample: row for row, sample in enumerate(self.terms.trajectory.samples)}
        rows = [mine[sample] for sample in samples if sample in mine]
        columns = self.terms.columns(self.batch)
        listed = [(row, column) for row in rows for column in columns]
        pairs = torch.tensor(listed, dtype=torch.long).view(-1, 2)
        for indices, genuine in chunks(len(pairs), self.micro_batch):
            rows, columns = pairs[indices].unbind(1)
            yield self.chunk(rows, columns, genuine)

    def chunk(self, rows: Int[Tensor, " N"], columns: Int[Tensor, " N"], genuine: int) -> Chunk:
        """The chunk of these pairs of this rank's trajectories."""
        samples = torch.tensor(self.terms.trajectory.samples)[rows]
        place = to_device(torch.stack([samples, columns]), self.terms.policy.device)
        return Chunk(rows, columns, (place[0], place[1]), genuine)

    def measure(self, terms: Mapping[str, Float[Tensor, " N"]], chunk: Chunk) -> None:
        """The ratios of a chunk."""
        if "logp" in terms:
            old = self.batch.logp_old[chunk.place]
            self.measured.add(terms["logp"][: chunk.genuine], old[: chunk.genuine])

    def backward(self, samples: Sequence[int]) -> float:
        """Accumulate this rank's share of the gradient over `samples`.

        Returns its share of the loss.
        """
        if self.gradients is not None and not self.moved:
            return self._collected(samples, self.gradients)
        return self._separable(samples) if self.objective.separable else self._coupled(samples)

    def _collected(self, samples: Sequence[int], gradients: ImageGradients) -> float:
        """The gradient at the weights that sampled: sum over images of c_i G_i."""
        loss, coefficients = self._derivative(samples, {"logp": self.batch.logp_old.clone()})
        per_step = coefficients["logp"][:, self.batch.stochastic]
        per_image = per_step.mean(1)
        if not torch.allclose(per_step, per_image[:, None].expand_as(per_step), rtol=1e-6, atol=0):
            raise UserError(
                f"objective {self.objective.name} is declared uniform_over_steps, and its "
                "derivative differs between the steps of an image; take the declaration away"
            )
        mine = torch.tensor(self.terms.trajectory.samples, device=per_image.device)
        weighted = gradients.weighted(per_image[mine])
        for name, parameter in self.terms.policy.parameters().items():
            parameter.grad = weighted[name]
        return loss.item() / ranks.state().num_processes

    def moving(self, samples: Sequence[int]) -> list[int]:
        """Of `samples`, those from which a gradient can come."""
        if not self.objective.follows_advantage:
            return list(samples)
        still = (self.batch.advantage == 0).tolist()
        return [sample for sample in samples if not still[sample]]

    def within_memory(self, compute: Callable[[], Result]) -> Result:
        """`compute()`; where memory runs out, once more from its beginning with half the calls."""
        before = dict(self.measured.sums)

        def attempt(micro_batch: int) -> Result:
            if micro_batch < self.micro_batch:
                self.micro_batch, self.measured.sums = micro_batch, before
                for parameter in self.terms.policy.parameters().values():
                    parameter.grad = None
            return compute()

        return self.halving.retried(attempt, PAIRS, self.micro_batch)

    @ranks.together()
    def _separable(self, samples: Sequence[int]) -> float:
        return self.within_memory(lambda: self._by_chunks(samples))

    def _by_chunks(self, samples: Sequence[int]) -> float:
        pairs = len(samples) * len(self.terms.columns(self.batch))
        loss = torch.zeros((), device=self.terms.policy.device)
        for chunk in self.chunks(self.moving(samples)):
            terms, genuine = self.terms(chunk.rows, chunk.columns), chunk.genuine
            batch = self.batch.pairs(*(indices[:genuine] for indices in chunk.place))
            as_columns = {name: vector[:genuine, None] for name, vector in terms.items()}
            share = self._loss(as_columns, batch) * (genuine / pairs)
            (share * self.loss_scale).backward()
            self.measure(terms, chunk)
            loss += share.detach()
        return loss.item()

    def _coupled(self, samples: Sequence[int]) -> float:
        return self._streamed(samples, self._matrices(samples)) / ranks.state().num_processes

    @ranks.together()
    def _streamed(
        self, samples: Sequence[int], matrices: Mapping[str, Float[Tensor, "B T"]]
    ) -> float:
        loss, coefficients = self._derivative(samples, matrices)
        self.within_memory(lambda: self._weighted(samples, coefficients))
        return loss.item()

    def _weighted(
        self, samples: Sequence[int], coefficients: Mapping[str, Float[Tensor, "B T"]]
    ) -> None:
        """The gradient of the sum of coefficients times matrices, chunk by chunk."""
        level = self._level(coefficients.values())
        for chunk in self.chunks(self.moving(samples)):
            now = self.terms(chunk.rows, chunk.columns)
            weights = {name: coefficients[name][chunk.place] for name in now}
            shares = [
                (weights[name] * value)[: chunk.genuine].sum()
                for name, value in now.items()
                if value.requires_grad
            ]
            (self.loss_scale / level * torch.stack(shares).sum()).backward()
            self.measure(now, chunk)
        for parameter in self.terms.policy.parameters().values():
            if parameter.grad is not None:
                parameter.grad *= level

    def _derivative(
        self, samples: Sequence[int], matrices: Mapping[str, Float[Tensor, "B T"]]
    ) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, "B T"]]]:
        """The loss over `samples`, and its derivative with respect to each of the matrices."""
        chosen = torch.tensor(list(samples), device=self.terms.policy.device)
        leaves = {name: matrix[chosen].requires_grad_() for name, matrix in matrices.items()}
        loss = self._loss(leaves, self.batch.rows(chosen))
        gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        coefficients = {name: torch.zeros_like(matrix) for name, matrix in matrices.items()}
        for name, gradient in zip(leaves, gradients, strict=True):
            coefficients[name][chosen] = 0.0 if gradient is None else gradient
        return loss.detach(), coefficients

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

        def fill() -> None:
            for chunk in self.chunks(samples):
                row, column = (indices[: chunk.genuine] for indices in chunk.place)
                for name, vector in self.terms(chunk.rows, chunk.columns).items():
                    matrices[name][row, column] = vector[: chunk.genuine]

        with ranks.together():
            self.within_memory(fill)
        ranks.sum_(list(matrices.values()))  # every rank's rows are zero on the others
        return matrices

    def _loss(self, terms: Mapping[str, Tensor], batch: Batch) -> Float[Tensor, ""]:
        others = {name: matrix for name, matrix in terms.items() if name != self.terms.argument}
        return self.objective(terms[self.terms.argument], batch.with_matrices(**others))


@torch.no_grad()
def measure_ratios(work: Pass, sampler: Sampler, images: int) -> None:
    """Ratios of a few pairs, for an update that scores none: evenly spread over the iteration."""
    rows, columns = spread_pairs(sampler, work.terms.trajectory, images)
    if len(rows):
        work.measure(work.terms(rows, columns), work.chunk(rows, columns, len(rows)))


def clip_gradients(
    parameters: Sequence[nn.Parameter], limit: float, loss_scale: float = 1.0
) -> float:
    """Sum gradients over ranks, undo `loss_scale`, and scale them to a norm of at most `limit`.

    Those of pieces have been summed by each backward pass. Returns the norm before.
    """
    gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
    in_pieces = any(map(pieces.is_piece, gradients))
    if not in_pieces:
        ranks.sum_(gradients)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.div_(loss_scale)
    if in_pieces:
        norm = pieces.norm(gradients)
        nn.utils.clip_grads_with_norm_(parameters, limit, norm)
        return norm.item()
    return nn.utils.clip_grad_norm_(parameters, limit).item()
