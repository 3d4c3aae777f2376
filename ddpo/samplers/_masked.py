"""A step of masked diffusion as a categorical distribution, and the steps of a masked sampler.

A state is a row of L letter numbers, 0 ... A - 1, or A where a mask stands. A step turns some of
the masks into letters and changes nothing else (SUBS, Sahoo et al. 2024, arXiv 2406.07524).
"""

from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torch.nn import functional as F

from ddpo.errors import UserError
from ddpo.samplers._gaussian import Reduction

Tokens = Int[Tensor, "N L"]
Rows = Float[Tensor, "N L A1"]
"""A state of weights, over the letters and, last, the mask: one-hot, or relaxed letters."""


@dataclass(frozen=True)
class MaskSchedule:
    """The log-linear schedule: at time t in [0, 1] each letter is a mask with probability t.

    letters  size of the alphabet A, which is also the number of the mask
    length   letters of a sequence, L
    """

    letters: int
    length: int


@dataclass(frozen=True)
class Masked:
    """What a step makes of N states: which masks are revealed, and the letter of each of these.

    Either each mask is revealed on its own, with probability 1 - stay, or `left` masks are left
    over, all choices of places being equally likely. Which places are revealed does not depend on
    the network: it cancels in ratios. A revealed mask becomes letter a with probability
    exp(log_probs[..., a]), independently of the others. Log-probabilities and divergences are
    reduced in fp64: a "mean" (nats per place, masked or not) or a "sum" (nats).

    x           (N, L) the states before the step; of relaxed ones, the likeliest letters
    log_probs   (N, L, A) of the letters; they mean something at masks alone
    stay        (N,) in [0, 1]
    left        (N,) or None
    rows        the states before the step with weights of the letters, where `rsample` is called
    temperature, straight_through  of `rsample`
    """

    x: Tokens
    log_probs: Float[Tensor, "N L A"]
    stay: Float[Tensor, " N"]
    left: Int[Tensor, " N"] | None = None
    rows: Rows | None = None
    temperature: float | None = None
    straight_through: bool = False

    @property
    def masks(self) -> Bool[Tensor, "N L"]:
        return self.x == self.log_probs.shape[-1]

    def sample(self, noise: Float[Tensor, "N L A1"]) -> Tokens:
        """The states after the step, by 1 + A standard normal numbers for each place.

        Their normal distribution function makes them uniform: the first says whether the mask is
        revealed, the others are the Gumbel noise of the letters, the largest of which is taken
        (Gumbel-max).
        """
        uniform = torch.special.ndtr(noise.double())
        letters = (self.log_probs.double() + _gumbel(uniform[..., 1:])).argmax(-1)
        return torch.where(self._revealed(uniform[..., 0]), letters, self.x)

    def rsample(self, noise: Float[Tensor, "N L A1"]) -> Rows:
        """The same sample with relaxed letters, so that a gradient reaches `log_probs`.

        A letter is softmax((log p + Gumbel noise) / temperature) (Jang et al. 2017, Maddison et al.
        2017); `straight_through`: its likeliest one, with the derivative of the softmax. Which
        masks are revealed is that of `sample`: it does not depend on the network. Raises ValueError
        without a temperature.
        """
        if self.temperature is None:
            raise ValueError("letters have no gradient without a temperature")
        uniform = torch.special.ndtr(noise.double())
        noisy = (self.log_probs.double() + _gumbel(uniform[..., 1:])) / self.temperature
        letters = noisy.softmax(-1).float()
        if self.straight_through:
            letters = likeliest(letters)
        revealed = self._revealed(uniform[..., 0])[..., None]
        rows = F.one_hot(self.x, noise.shape[-1]).float() if self.rows is None else self.rows
        return torch.where(revealed, F.pad(letters, (0, 1)), rows)

    def _revealed(self, uniform: Float[Tensor, "N L"]) -> Bool[Tensor, "N L"]:
        if self.left is None:
            return self.masks & (uniform >= self.stay[:, None])
        order = torch.where(self.masks, uniform, -1.0).argsort(-1, descending=True).argsort(-1)
        return self.masks & (order >= self.left[:, None])

    def log_prob(self, x: Tokens, reduction: Reduction = "mean") -> Float[Tensor, " N"]:
        """log p(x | state): of the places that are revealed, and of the letters there.

        -inf where the step cannot lead to x.
        """
        hidden = x == self.log_probs.shape[-1]
        revealed = self.masks & ~hidden
        chosen = torch.where(revealed, x, 0)[..., None]
        letters = self.log_probs.double().gather(-1, chosen)[..., 0]
        total = torch.where(revealed, letters, 0.0).sum(1) + self._log_places(revealed.sum(1))
        impossible = (~self.masks & (x != self.x)).any(1)
        return _reduce(torch.where(impossible, -torch.inf, total), x, reduction)

    def _log_places(self, revealed: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
        """The log-probability that these places are revealed, given how many they are."""
        masks, stay = self.masks.sum(1), self.stay.double()
        if self.left is None:
            return torch.xlogy(masks - revealed, stay) + torch.xlogy(revealed, 1 - stay)
        factorials = [torch.lgamma(1.0 + n.double()) for n in (revealed, masks - revealed, masks)]
        choices = factorials[0] + factorials[1] - factorials[2]
        return torch.where(masks - revealed == self.left, choices, -torch.inf)

    @property
    def chance(self) -> Float[Tensor, " N"]:
        """The probability that a mask is revealed."""
        if self.left is None:
            return 1 - self.stay.double()
        masks = self.masks.sum(1).double()
        return (masks - self.left) / masks.clamp(min=1)

    def kl(self, other: "Masked", reduction: Reduction = "mean") -> Float[Tensor, " N"]:
        """KL(self || other) of two steps from one state, in closed form.

        The sum over masks of (1 - stay) KL(letters || other's): with the log-linear schedule
        1 - stay = gamma(t) dt, and this is the path KL of DRAKES (Wang et al. 2024).
        """
        mine, others = self.log_probs.double(), other.log_probs.double()
        terms = torch.where(mine > -torch.inf, mine.exp() * (mine - others), 0.0).sum(-1)
        return _reduce(self.chance * torch.where(self.masks, terms, 0.0).sum(1), self.x, reduction)


@dataclass(frozen=True)
class MaskedSteps:
    """The T steps of a masked sampler.

    timesteps   (T,) the times at which steps begin, in (0, 1], the noisiest first
    stay        (T,) the probability that a mask is not revealed
    left        (T,) masks that are left after each step; None: each is revealed on its own
    letters     size of the alphabet
    temperature, straight_through  of samples with a gradient
    stochastic  (T,) every step has probabilities
    """

    timesteps: Float[Tensor, " T"]
    stay: Float[Tensor, " T"]
    left: Int[Tensor, " T"] | None
    letters: int
    temperature: float | None = None
    straight_through: bool = False
    stochastic: Bool[Tensor, " T"] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "stochastic", torch.ones_like(self.stay, dtype=torch.bool))

    def __len__(self) -> int:
        return len(self.timesteps)

    def to(self, device: torch.device) -> "MaskedSteps":
        left = None if self.left is None else self.left.to(device)
        return replace(
            self, timesteps=self.timesteps.to(device), stay=self.stay.to(device), left=left
        )

    def noise_shape(self, latent_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Of the standard normal numbers of one state."""
        return (*latent_shape, 1 + self.letters)

    def relaxed(self, temperature: float | None, straight_through: bool) -> "MaskedSteps":
        """The steps whose samples have a gradient."""
        return replace(self, temperature=temperature, straight_through=straight_through)

    def start(self, noise: Float[Tensor, "N L A1"]) -> Tokens:
        """The state that the first step begins with: all masks."""
        return torch.full(noise.shape[:-1], self.letters, device=noise.device)

    def step(
        self,
        index: Int[Tensor, " N"],
        x: Shaped[Tensor, "N *state"],
        output: Float[Tensor, "N L A"],
    ) -> Masked:
        """The distribution of the state after step `index`, given the letters' log-probabilities.

        `x` are letter numbers, or rows of weights.
        """
        left = None if self.left is None else self.left[index]
        tokens, rows = (x, None) if x.dim() == 2 else (x.argmax(-1), x)
        relaxed = (rows, self.temperature, self.straight_through)
        return Masked(tokens, output, self.stay[index], left, *relaxed)

    def check(self, name: str) -> None:
        """Raises UserError where a probability is none, of the sampler of that name."""
        if not ((self.stay >= 0) & (self.stay <= 1)).all():
            raise UserError(f"sampler {name}: {self.stay.tolist()} are no probabilities of staying")


def likeliest(letters: Float[Tensor, "N L A"]) -> Float[Tensor, "N L A"]:
    """One-hot rows of the largest weights, with the derivative of these (straight-through)."""
    hard = F.one_hot(letters.argmax(-1), letters.shape[-1]).to(letters.dtype)
    return hard + letters - letters.detach()


def _gumbel(uniform: Float[Tensor, "N L A"]) -> Float[Tensor, "N L A"]:
    return -(-uniform.log()).log()


def _reduce(total: Float[Tensor, " N"], x: Tokens, reduction: Reduction) -> Float[Tensor, " N"]:
    return total / x.shape[1] if reduction == "mean" else total
