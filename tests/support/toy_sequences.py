"""Three places, three letters: a masked model whose conditionals are those of one joint, to count.

A table says, for each of the 4^3 states, the letters' log-probabilities at each place: an exact
base is built from a joint law, so that one letter at a time in random order draws from that law.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddpo import objectives
from ddpo.media import MEDIA
from ddpo.models.masked_sequence import NoCondition
from ddpo.objectives import Batch, Replay
from ddpo.prompts import Prompt
from ddpo.rewards import Reward
from ddpo.rollout.sample import Sampler, sample
from ddpo.rollout.trajectory import Trajectory
from ddpo.samplers import MaskSchedule, likeliest
from ddpo.training.terms.outcomes import Outcomes

LETTERS, PLACES = 3, 3
SEQUENCES = torch.tensor(list(product(range(LETTERS), repeat=PLACES)))
"""All 27, in the order of their numbers in base 3."""
STATES = torch.tensor(list(product(range(LETTERS + 1), repeat=PLACES)))
"""All 64 states; letter 3 is the mask."""


def number(states: Tensor) -> Tensor:
    """The row of STATES that each state is."""
    return (states * (LETTERS + 1) ** torch.arange(PLACES - 1, -1, -1)).sum(-1)


def joint(seed: int = 0) -> Tensor:
    """A law of the 27 sequences, in fp64."""
    noise = torch.randn(27, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (1.3 * noise).softmax(0)


def reward_of(seed: int = 1) -> Tensor:
    """A reward of each of the 27, in fp64, between 0 and 1."""
    noise = torch.rand(27, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return noise


def conditionals(law: Tensor) -> Tensor:
    """(64, 3, 3) log-probabilities of the letters, given what is not masked."""
    table = torch.zeros(len(STATES), PLACES, LETTERS, dtype=torch.float64)
    for row, state in enumerate(STATES):
        fits = ((state == SEQUENCES) | (state == LETTERS)).all(1)
        for place in range(PLACES):
            for letter in range(LETTERS):
                chosen = fits & (SEQUENCES[:, place] == letter)
                table[row, place, letter] = law[chosen].sum()
    return table.clamp(min=1e-300).log().log_softmax(-1)


class Table:
    """A policy whose network is the table; its base is the one that it was made with."""

    latent_dtype, image_size, half_precision = torch.long, 0, False
    conditional, device = False, torch.device("cpu")
    medium: Any = MEDIA["dna"]
    modules: Sequence[nn.Module] = ()

    def __init__(self, table: Tensor) -> None:
        self.table = nn.Parameter(table.clone())
        self.latent_shape, self.schedule = (PLACES,), MaskSchedule(LETTERS, PLACES)
        self.base, self.snapshots = table.clone(), {}
        self.active: Tensor = self.table

    def parameters(self) -> dict[str, nn.Parameter]:
        return {"table": self.table}

    def condition(self, prompts: Sequence[Prompt], negative_prompt: str | None = None) -> Any:
        return NoCondition(len(prompts))

    def predict(self, latents: Tensor, timesteps: Tensor, condition: Any, scale: float) -> Tensor:
        """Of rows of weights: the table read at all states, weighted (a network is smooth too)."""
        if latents.dim() == 2:
            return self.active[number(latents)].log_softmax(-1)
        one_hot = F.one_hot(STATES, LETTERS + 1).to(latents.dtype)
        weights = torch.einsum("nla,sla->nsl", latents, one_hot).prod(-1)
        logits = torch.einsum("ns,sla->nla", weights.double(), self.active)
        return logits.log_softmax(-1)

    def decode(self, latents: Tensor) -> Tensor:
        if latents.dim() == 3:
            return likeliest(latents[..., :-1])
        return F.one_hot(latents, LETTERS + 1)[..., :-1].float()

    @contextmanager
    def weights(self, name: str) -> Iterator[None]:
        """The base is a constant, as where an adapter is switched off."""
        self.active = self.base if name == "base" else self.table
        yield
        self.active = self.table


def transitions(
    policy: Table, steps: Any, base: Tensor | None = None
) -> list[tuple[Tensor, Tensor]]:
    """For each step its (64, 64) probabilities, and the (64,) KLs to the table `base`, in nats."""
    x, following = STATES.repeat_interleave(64, 0), STATES.repeat(64, 1)
    result = []
    for t in range(len(steps)):
        index = torch.full((64 * 64,), t)
        step = steps.step(index, x, policy.predict(x, index, None, 1.0))
        logp = step.log_prob(following, "sum").view(64, 64)
        chances = torch.where(logp > -torch.inf, logp.exp(), 0.0)
        kl = torch.zeros(64, dtype=torch.float64)
        if base is not None:
            other = steps.step(index, x, base[number(x)].log_softmax(-1))
            kl = step.kl(other, "sum").view(64, 64)[:, 0]
        result.append((chances, kl))
    return result


def law_of(policy: Table, steps: Any, base: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The exact law of the 27 sequences after all steps, and the path KL, with their graph."""
    mass = F.one_hot(torch.tensor(63), 64).double()
    total = torch.zeros((), dtype=torch.float64)
    for chances, kl in transitions(policy, steps, base):
        total = total + (mass * kl).sum()
        mass = mass @ chances
    return mass[number(SEQUENCES)], total


def variation(one: Tensor, other: Tensor) -> float:
    """Total variation of two laws."""
    return 0.5 * (one - other).abs().sum().item()


ALPHA, BATCH, ITERATIONS, RATE = 0.5, 512, 300, 0.05
"""Of the toy trainings: the weight of the path KL in units of the reward, samples, updates, Adam's
rate, which falls linearly to 0."""


def optimum(law: Tensor, reward: Tensor, alpha: float = ALPHA) -> Tensor:
    """exp(r / alpha) p_pretrained, normalized."""
    return (law.log() + reward / alpha).softmax(0)


def descend(
    policy: Table,
    loss: Callable[[int], Tensor],
    iterations: int = ITERATIONS,
    rate: float = RATE,
) -> None:
    """Adam on the table."""
    adam = torch.optim.Adam([policy.table], rate)
    schedule = torch.optim.lr_scheduler.LinearLR(adam, 1.0, 0.0, iterations)
    for iteration in range(iterations):
        adam.zero_grad()
        loss(iteration).backward()
        adam.step()
        schedule.step()


def sampled(policy: Table, steps: Any, count: int, iteration: int) -> Trajectory:
    """A rollout, with the reference's log-probabilities."""
    prompts, keys = [Prompt("toy")] * count, [(iteration, i) for i in range(count)]
    sampler = Sampler(steps, 1.0, count)
    with torch.no_grad():
        (trajectory,) = sample(policy, sampler, prompts, keys, ("logp_ref",))
    return trajectory


def drakes_loss(
    policy: Table,
    steps: Any,
    reward: Tensor,
    iteration: int,
    *,
    temperature: float,
    straight_through: bool = False,
    alpha: float = ALPHA,
) -> Tensor:
    """What the trainer's terms give the objective, on a batch of whole replays."""
    keys = [(iteration, i) for i in range(BATCH)]
    trajectory = sampled(policy, steps, BATCH, iteration)
    relaxed = Sampler(steps.relaxed(temperature, straight_through), 1.0, BATCH)
    count = len(steps)
    replay = Replay(
        (count, count),
        temperature=temperature,
        straight_through=straight_through,
        kl_in_nats=True,
    )
    terms = Outcomes(
        policy,
        relaxed,
        trajectory,
        [Reward("toy", 1.0, smooth(reward))],
        replay,
        count=count,
        keys=keys,
        fresh=keys,
        decode_batch=BATCH,
        reference=True,
    )
    matrices = terms(torch.arange(BATCH), torch.zeros(BATCH, dtype=torch.long))
    drakes = objectives.build("drakes", alpha=alpha, temperature=temperature, last_steps=count)
    nothing = torch.zeros(BATCH, dtype=torch.float64)
    group = torch.zeros(BATCH, dtype=torch.long)
    present, columns = torch.ones(BATCH, dtype=torch.bool), torch.ones(1, dtype=torch.bool)
    batch = Batch(nothing, nothing, group, present, columns, {"kl": matrices["kl"][:, None]})
    return drakes(matrices["rewards"][:, None], batch)


def smooth(reward: Tensor) -> Callable[..., Tensor]:
    """The multilinear reward on rows of weights: at one-hot rows the table's."""

    def score(rows: Tensor, prompts: object, metadata: object) -> Tensor:
        return torch.einsum("na,nb,nc,abc->n", *rows.double().unbind(1), reward.view(3, 3, 3))

    return score
