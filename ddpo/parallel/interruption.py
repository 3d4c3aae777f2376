"""A signal that ends a run: first after the iteration, then at once."""

import logging
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

from ddpo.parallel import ranks

log = logging.getLogger("ddpo")


class Interruption:
    """Whether somebody has asked a run to stop.

    asked  SIGINT or SIGTERM came while `listening`
    """

    def __init__(self) -> None:
        self.asked = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """The first SIGINT or SIGTERM asks to save and stop after the iteration.

        The second stops at once.

        A launcher of many processes passes on the signal that the terminal sent to all: that is no
        second.
        """
        echo_s = 1.0 if ranks.state().num_processes > 1 else 0.0
        signals: list[float] = []

        def ask(number: int, frame: object) -> None:
            signals.append(time.monotonic())
            if len(signals) > 1 and signals[-1] - signals[0] >= echo_s:
                raise KeyboardInterrupt
            if not self.asked:
                log.info("stopping after this iteration (once more to stop at once)")
            self.asked = True

        before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
