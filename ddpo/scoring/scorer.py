"""Images to rewards, in threads beside the sampling of the next images."""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, wait
from threading import Semaphore, Thread
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ddpo.errors import UserError
from ddpo.rewards import Metadata, Reward, Values, groupwise

Chunk = tuple[Float[Tensor, "B 3 height width"], Sequence[str], Metadata]


class Scorer:
    """Scores chunks of images with every reward; `submit` returns at once, `collect` waits.

    Rewards that compare images get them by whole groups, `group_size` images in a row, however the
    chunks cut through these. No chunk may keep `collect` waiting for more than `timeout_s` seconds
    (None: for ever). The threads compute on the GPU of the thread that submits. They are daemons: a
    reward that hangs must not keep the process from ending, as ThreadPoolExecutor's would.
    """

    def __init__(
        self,
        rewards: Sequence[Reward],
        threads: int = 2,
        timeout_s: float | None = None,
        group_size: int = 1,
    ) -> None:
        self.rewards = list(rewards)
        self.timeout_s, self.group_size = timeout_s, group_size
        self._slots = Semaphore(threads)
        self._pending: list[tuple[list[Reward], Future[Values]]] = []
        self._begun: list[tuple[Tensor, str, Mapping[str, Any]]] = []

    def submit(
        self,
        images: Float[Tensor, "B 3 height width"],
        prompts: Sequence[str],
        metadata: Metadata,
    ) -> None:
        """Start scoring a chunk. Raises what an earlier one has met."""
        if any(future.done() and future.exception() for _, future in self._pending):
            self.collect()
        apart = [reward for reward in self.rewards if not groupwise(reward.score)]
        self._start(apart, [(images, list(prompts), list(metadata))])
        if comparing := [reward for reward in self.rewards if reward not in apart]:
            self._begun += zip(images, prompts, metadata, strict=True)
            size, groups = self.group_size, []
            while len(self._begun) >= size:
                rows, texts, facts = zip(*self._begun[:size], strict=True)
                groups.append((torch.stack(rows), texts, facts))
                del self._begun[:size]
            self._start(comparing, groups)

    def _start(self, rewards: list[Reward], chunks: list[Chunk]) -> None:
        """Score chunks one after the other in a thread of their own."""
        if not rewards or not chunks:
            return
        future = Future[Values]()
        self._pending.append((rewards, future))
        device = torch.cuda.current_device() if torch.cuda.is_initialized() else None

        def score() -> None:
            with self._slots, torch.no_grad():  # a new thread begins with gradients enabled
                try:
                    # a new thread begins on the first GPU, whatever the rank's is
                    if device is not None:
                        torch.cuda.set_device(device)
                    values = {r.name: torch.cat([r(*chunk) for chunk in chunks]) for r in rewards}
                    future.set_result(values)
                except BaseException as error:  # sys.exit too, or collect would wait for ever
                    future.set_exception(error)

        Thread(target=score, name="reward", daemon=True).start()

    def collect(self) -> Values:
        """Every reward's values of all chunks since the last call, in order.

        Raises UserError when a reward raises, returns something else than numbers, or hangs.
        """
        pending, self._pending, self._begun = self._pending, [], []
        columns: dict[str, list[Tensor]] = {reward.name: [] for reward in self.rewards}
        for rewards, future in pending:
            wait([future], self.timeout_s)
            if not future.done():
                names = ", ".join(reward.name for reward in rewards)
                raise UserError(
                    f"rewards: {names} gave no values within {self.timeout_s:g} s "
                    "(trainer.reward_timeout_s)"
                )
            for name, values in future.result().items():
                columns[name].append(values)
        return {name: torch.cat(parts) for name, parts in columns.items()}
