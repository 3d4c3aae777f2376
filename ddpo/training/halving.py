"""What happens when a device's memory runs out: the call's size is halved, once, and the work is
done again. It is the same result: sizes of calls set speed and memory alone."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from ddpo.errors import Broken, Stopped
from ddpo.parallel import ranks
from ddpo.rollout.gradients import ImageGradients
from ddpo.rollout.trajectory import Trajectory

Result = TypeVar("Result")

IMAGES, PAIRS = "sampler.batch_size", "trainer.micro_batch"
"""The options that say how many images, or (sample, step) pairs, a call has."""


@dataclass
class Halving:
    """The sizes that were halved in this process: option -> what it has become."""

    sizes: dict[str, int] = field(default_factory=dict)

    def halve(self, place: str, size: int) -> int:
        """Half of it.

        Raises Stopped where it was halved before, or is 1; Broken where all ranks make the same
        calls, so that none can make one again alone.
        """
        if ranks.before_waiting:
            raise Broken(
                f"rank {ranks.state().process_index}: the device's memory has no room for {place} "
                f"{size}, and processes that share their weights cannot halve it on the way; take "
                + (f"--{place} {size // 2}" if size > 1 else "model.gradient_checkpointing")
            )
        if place in self.sizes or size == 1:
            before = ", and it was halved once already" if place in self.sizes else ""
            smaller = "model.gradient_checkpointing" if size == 1 else f"--{place} {size // 2}"
            raise Stopped(
                f"the device's memory has no room for {place} {size}{before}; take {smaller}"
            )
        self.sizes[place] = size // 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return size // 2

    def retried(self, compute: Callable[[int], Result], place: str, size: int) -> Result:
        """`compute(size)`, and where memory runs out once more with half of it."""
        while True:
            try:
                return compute(size)
            except torch.OutOfMemoryError:
                pass  # outside of the handler nothing keeps the broken graph alive
            size = self.halve(place, size)

    def sampled(
        self,
        rest: Callable[[int, int], Iterator[Trajectory]],
        count: int,
        batch_size: int,
        gradients: ImageGradients | None,
    ) -> Iterator[Trajectory]:
        """`rest(first, batch_size)` samples the images from the one numbered `first` on.

        What was sampled before memory ran out stays.
        """
        first, chunks, whole = 0, 0, False
        while not whole:
            try:
                for part in rest(begun := first, batch_size):
                    part.samples = [begun + i for i in part.samples]
                    first, chunks = part.samples[-1] + 1, chunks + 1
                    yield part
                whole = True
            except torch.OutOfMemoryError:
                pass
            if not whole:
                batch_size = self.halve(IMAGES, batch_size)
                if gradients is not None:
                    gradients.keep(chunks)

    def of_all_ranks(self) -> dict[str, int]:
        """The smallest of each, on every rank, which then goes on with it."""
        everyone = ranks.gather([self.sizes])
        places = sorted({place for sizes in everyone for place in sizes})
        self.sizes = {
            place: min(sizes[place] for sizes in everyone if place in sizes) for place in places
        }
        return self.sizes
