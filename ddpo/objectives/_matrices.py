"""What objectives are functions of: matrices, the batch that they come in, replays of rewards."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ddpo.errors import UserError
from ddpo.parallel.seeds import Purpose, generator

MATRICES = {
    "log-probabilities": ("logp_ref", "kl", "kl_old", "std"),
    "denoising errors": (
        "errors_ref",
        "cross_ref",
        "errors_old",
        "cross_old",
        "absolute_plus",
        "absolute_minus",
        "x0_scale",
    ),
    "rewards": ("kl",),
}
"""What an objective may declare in `needs`, by what it is a function of. kl_old is the KL of a step
to the policy that sampled, std its standard deviation. With residuals r, r_ref
and r_old (what the trained network, the pretrained one and the old policy predict, less the
target), all divided by D: errors are |r|^2, errors_old |r_old|^2 and cross_old <r, r_old>;
absolute_plus and absolute_minus are the sums of |(1 - b) r_old + b r| and |(1 + b) r_old - b r|,
with b the option that the objective declares as `mixes`, without a gradient. x0_scale times a
residual is the error in x_0."""


class MissingMatrix(LookupError):
    """An objective reads a matrix that its batch does not hold; the argument is its name."""


@dataclass(frozen=True)
class Batch:
    """What is known of B trajectories besides the matrix that the objective is a function of.

    advantage   one number per trajectory, clipped
    reward      the weighted sum of all rewards (with advantage.per_reward: of their advantages); a
                gated sample has the lowest of its group, or, where that is all gated, of all that
                passed
    group       trajectories of one prompt in one iteration share a number
    present     False for samples that take no part in the update, whose advantage and reward mean
                nothing; an objective is never given one
    stochastic  False for columns that must not enter the loss: steps without a density or left out
    matrices    by name, (B, T) or (B, K); objectives read them as `batch.logp_old` and so on
    all_reward  every reward of the iteration, whatever part of it this batch is: for statistics
    all_group   their groups
    """

    advantage: Float[Tensor, " B"]
    reward: Float[Tensor, " B"]
    group: Int[Tensor, " B"]
    present: Bool[Tensor, " B"]
    stochastic: Bool[Tensor, " T"]
    matrices: Mapping[str, Tensor] = field(default_factory=dict)
    all_reward: Float[Tensor, " N"] = field(default_factory=lambda: torch.zeros(0))
    all_group: Int[Tensor, " N"] = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))

    @property
    def logp_old(self) -> Float[Tensor, "B T"]:
        """Log-probabilities under the policy that sampled.

        There are none beside denoising errors.
        """
        return self.matrix("logp_old")

    @property
    def logp_ref(self) -> Float[Tensor, "B T"]:
        """Log-probabilities under the reference, for `needs=("logp_ref",)`."""
        return self.matrix("logp_ref")

    @property
    def kl(self) -> Float[Tensor, "B T"]:
        """KL of each step to the reference, with its derivative, for `needs=("kl",)`.

        Beside rewards it is (B, K), the mean over the steps of a replay.
        """
        return self.matrix("kl")

    @property
    def errors_ref(self) -> Float[Tensor, "B K"]:
        """Denoising errors of the reference on the same noise, for `needs=("errors_ref",)`."""
        return self.matrix("errors_ref")

    def matrix(self, name: str) -> Tensor:
        """Raises MissingMatrix, of which `Objective` makes one line that names the remedy."""
        if name not in self.matrices:
            raise MissingMatrix(name)
        return self.matrices[name]

    def with_matrices(self, **matrices: Tensor) -> "Batch":
        """The batch with these matrices too, or in the place of its own."""
        return replace(self, matrices={**self.matrices, **matrices})

    def rows(self, rows: Int[Tensor, " N"]) -> "Batch":
        """The batch of N chosen trajectories."""
        return replace(
            self, **self._outcomes(rows), matrices=self._each(lambda matrix: matrix[rows])
        )

    def pairs(self, rows: Int[Tensor, " N"], columns: Int[Tensor, " N"]) -> "Batch":
        """N chosen (sample, step) pairs as N trajectories of one step, for separable objectives."""
        return replace(
            self,
            **self._outcomes(rows),
            matrices=self._each(lambda matrix: matrix[rows, columns][:, None]),
            stochastic=self.stochastic[columns[:1]],
        )

    def blocks(self, logp: Float[Tensor, "B T"], size: int) -> tuple[Float[Tensor, "B M"], "Batch"]:
        """Macro-actions: `size` stochastic steps in a row as one, with added log-probs and KLs.

        A ratio is then that of a whole block: size 1 is one ratio per step, T one per trajectory
        (Chai et al. 2024).
        """
        block = torch.arange(int(self.stochastic.sum()), device=logp.device) // size
        count = int(block.max()) + 1

        def add_up(matrix: Float[Tensor, "B T"]) -> Float[Tensor, "B M"]:
            return matrix.new_zeros(len(matrix), count).index_add(
                1, block, matrix[:, self.stochastic]
            )

        every = torch.ones(count, dtype=torch.bool, device=logp.device)
        return add_up(logp), replace(self, matrices=self._each(add_up), stochastic=every)

    def comparisons(self, ties: bool = False) -> tuple[Int[Tensor, " P"], Int[Tensor, " P"]]:
        """Every pair of samples of one prompt: rows of the better ones, rows of the worse ones.

        `ties` adds pairs of equal reward, each once.
        """
        same = self.group[:, None] == self.group
        difference = self.reward[:, None] - self.reward
        chosen = same & (difference > 0)
        if ties:
            chosen |= (same & (difference == 0)).triu(1)
        better, worse = chosen.nonzero().unbind(1)
        return better, worse

    def mean(self, terms: Float[Tensor, "B T"]) -> Float[Tensor, ""]:
        """The mean of `terms` over all rows and stochastic columns.

        0, with its graph, over no row.
        """
        # no selection of columns: how many there are would have to be read from the device
        chosen = torch.where(self.stochastic, terms, terms.new_zeros(()))
        return chosen.sum() / (len(terms) * self.stochastic.sum()).clamp(min=1)

    def _outcomes(self, rows: Int[Tensor, " N"]) -> dict[str, Tensor]:
        """What there is one number of per trajectory, of the chosen ones."""
        return {
            name: getattr(self, name)[rows] for name in ("advantage", "reward", "group", "present")
        }

    def _each(self, change: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """The matrices, changed."""
        return {name: change(matrix) for name, matrix in self.matrices.items()}


@dataclass(frozen=True)
class Replay:
    """How the last steps of a trajectory are repeated with a graph, up to the image that is scored.

    last_steps  (least, most) steps K that are repeated; K is drawn uniformly between them, both
                included, once for each pass over the images
    renoisings  0: from the stored state before them, with the rollout's own noise; n: n times, from
                x_0 noised anew to the level before them, with fresh noise
    to_x0       the first repeated step goes right to the predicted x_0, and is the only one
    temperature of the softmax that makes the letters of a masked model differentiable; None: for
                models of continuous noise
    straight_through  a step hands on the likeliest letter, with the derivative of the softmax
    kl_in_nats  the KL is summed over steps and dimensions, in place of its mean over both
    whole_path  the KL counts the steps before the repeated ones too, at their stored states
    """

    last_steps: tuple[int, int] = (1, 1)
    renoisings: int = 0
    to_x0: bool = False
    temperature: float | None = None
    straight_through: bool = False
    kl_in_nats: bool = False
    whole_path: bool = False

    def __post_init__(self) -> None:
        least, most = self.last_steps
        if not 1 <= least <= most:
            raise UserError(
                f"objective.last_steps: [{least}, {most}] is no range of steps; "
                "write [least, most] with 1 <= least <= most"
            )

    @property
    def relaxed(self) -> tuple[float | None, bool]:
        """How letters are made differentiable."""
        return self.temperature, self.straight_through

    @property
    def columns(self) -> int:
        """Replays of each image, the columns of the matrix of rewards."""
        return max(1, self.renoisings)

    def count(self, seed: int, iteration: int, epoch: int) -> int:
        """K of a pass over the images: how many steps from the end its replays begin."""
        least, most = self.last_steps
        noise = generator(Purpose.TIMESTEPS, seed, iteration, epoch)
        return int(torch.randint(least, most + 1, (), generator=noise))

    def taken(self, count: int) -> int:
        """Steps with a graph where replays begin `count` steps from the end."""
        return 1 if self.to_x0 else count
