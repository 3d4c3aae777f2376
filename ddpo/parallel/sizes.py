"""How many of what: the arithmetic of an iteration, for the trainer, the plan and the checks."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import torch

from ddpo.parallel import ranks


@dataclass(frozen=True)
class Sizes:
    """What an iteration samples and how it learns from that, on however many processes.

    A group is the samples of one prompt; it is never split over minibatches or processes. Groups
    and samples are numbered from 0 within the iteration, group after group.

    prompts_per_iteration  groups
    samples_per_prompt     samples per group
    minibatches            optimizer steps per pass; divides prompts_per_iteration
    epochs                 passes over the samples
    micro_batch            (sample, column) pairs per network call
    decode_batch           images that are decoded with a graph at a time; None: a micro-batch
    """

    prompts_per_iteration: int
    samples_per_prompt: int
    minibatches: int = 1
    epochs: int = 1
    micro_batch: int = 16
    decode_batch: int | None = None

    @property
    def images(self) -> int:
        """Samples per iteration."""
        return self.prompts_per_iteration * self.samples_per_prompt

    @property
    def updates(self) -> int:
        """Optimizer steps per iteration."""
        return self.minibatches * self.epochs

    @property
    def groups_per_update(self) -> int:
        """Groups of which an optimizer step learns."""
        return self.prompts_per_iteration // self.minibatches

    def group(self, sample: int) -> int:
        """The group of a sample."""
        return sample // self.samples_per_prompt

    def samples(self, groups: Iterable[int]) -> list[int]:
        """The samples of these groups, in order."""
        each = range(self.samples_per_prompt)
        return [group * self.samples_per_prompt + i for group in groups for i in each]

    def share(self, process: int, processes: int) -> range:
        """The groups that a process samples: a contiguous block."""
        return ranks.share(self.prompts_per_iteration, process, processes)

    def deal(self, order: torch.Generator) -> list[list[int]]:
        """The groups of each minibatch: one of every `minibatches` in a row, in random order.

        The same on any number of processes, and even for processes that hold contiguous blocks of
        groups.
        """
        dealt: list[list[int]] = [[] for _ in range(self.minibatches)]
        for first in range(0, self.prompts_per_iteration, self.minibatches):
            places = torch.randperm(self.minibatches, generator=order).tolist()
            for place, group in zip(places, range(first, self.prompts_per_iteration), strict=False):
                dealt[place].append(group)
        return dealt

    def better_minibatches(self) -> Collection[int]:
        """The numbers of minibatches next to this one that divide the groups.

        There is none where it divides them itself.
        """
        groups = self.prompts_per_iteration
        if groups % self.minibatches == 0:
            return []
        divisors = [n for n in range(1, groups + 1) if groups % n == 0]
        below = [n for n in divisors if n < self.minibatches]
        above = [n for n in divisors if n > self.minibatches]
        return [*below[-1:], *above[:1]]
