"""An evaluation that is killed goes on where it was: the same numbers, and no picture twice."""

import os
import signal
from collections.abc import Iterable
from pathlib import Path

import pytest
from option_cases import world
from torch import Tensor

from ddpo.__main__ import main
from ddpo.rollout.store import Store

FLAGS = ["evaluate", "run", "--evaluation.samples_per_prompt", "2", "--sampler.batch_size", "4"]


def evaluate_until(out: str, saves: int, log: Path) -> int:
    """In a process of its own, which kills itself at that save; the signal that ended it, or 0.

    Each sample that is on disk has a line in `log`.
    """
    child = os.fork()
    if child:
        return os.WTERMSIG(os.waitpid(child, 0)[1])
    save, done = Store.save, 0

    def counted(self: Store, keys: Iterable[str], samples: Tensor) -> None:
        nonlocal done
        for key, sample in zip(keys, samples.split(1), strict=True):
            if done == saves:
                os.kill(os.getpid(), signal.SIGKILL)
            save(self, [key], sample)
            with open(log, "a") as lines:
                lines.write(f"{key}\n")
            done += 1

    Store.save = counted
    os._exit(main([*FLAGS, "--out", out]))


def test_killed_at_five_moments(tmp_path_factory: pytest.TempPathFactory) -> None:
    """At the first save, within a chunk, between sets and columns, and at the last one."""
    with world(tmp_path_factory.mktemp("killed"), run=True):
        assert evaluate_until("whole", -1, Path("whole.log")) == 0
        made = Path("whole.log").read_text().split()
        assert len(made) == len({*made})
        for moment in (0, 3, 1, 6):  # saves since the last kill
            assert evaluate_until("killed", moment, Path("killed.log")) == signal.SIGKILL
            assert not Path("killed/evaluation").exists()
        left = len(made) - 10
        assert evaluate_until("killed", left - 1, Path("killed.log")) == signal.SIGKILL
        assert evaluate_until("killed", -1, Path("killed.log")) == 0
        assert sorted(Path("killed.log").read_text().split()) == sorted(made)
        for name in ("samples.jsonl", "prompts.csv", "results.json"):
            one, other = (Path(out, "evaluation", name).read_text() for out in ("whole", "killed"))
            assert one == other.replace('"run_dir": "killed"', '"run_dir": "whole"'), name
