"""How far an evaluation has come, and how long it will still take."""

import logging
import time
from types import TracebackType
from typing import Self

from tqdm import tqdm

log = logging.getLogger("ddpo")

EVERY_S = 60.0
"""Seconds from one line to the next where there is no terminal to draw a bar on."""


class Progress:
    """A bar over the samples that have to be made, with tqdm's estimate of what is left.

    Those that were there already count as none, so that the estimate is of the others. Without a
    terminal it is a line in the log, once a minute. `total` is of all processes; each is told of
    its own share, and takes the others to be as far.
    """

    def __init__(self, total: int, quiet: bool = False, share: int = 1) -> None:
        self.bar = tqdm(
            total=total, desc="evaluating", unit="picture", disable=True if quiet else None
        )
        self.quiet, self.share = quiet, share
        self.total, self.made = total, 0
        self.began = self.told = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bar.close()

    def add(self, made: int, found: int) -> None:
        """So many were made, and so many were there already."""
        self.total -= found * self.share
        self.made += made * self.share
        self.bar.total = max(self.total, self.made)
        self.bar.update(made * self.share)
        now = time.monotonic()
        if self.bar.disable and not self.quiet and self.made and now - self.told >= EVERY_S:
            self.told = now
            log.info("%s", self.line(now - self.began))

    def line(self, seconds: float) -> str:
        """`120 of 540 pictures, about 7 minutes left`, after so many seconds."""
        left = max(0, self.total - self.made) * seconds / self.made / 60
        return f"{self.made} of {self.total} pictures, about {left:.0f} minutes left"
