"""In the driver of a test: a training in a process of its own, which may die in the middle."""

import os
import signal
from collections.abc import Sequence
from typing import Any

from ddpo import train
from ddpo.commands import frame

Moment = tuple[Any, str, int]
"""An owner, its function, and the call of it that never returns."""


def kill_at(moment: Moment) -> None:
    (owner, name, call), calls = moment, []
    original = getattr(owner, name)

    def counted(*args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **options)

    setattr(owner, name, counted)


def process(argv: Sequence[str], moment: Moment | None = None) -> int:
    """The exit code of `ddpo train`, forked from a process that has done the imports."""
    child = os.fork()
    if child == 0:
        if moment:
            kill_at(moment)
        os._exit(frame.run(train.main, argv))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
