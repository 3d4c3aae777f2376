"""What an evaluation costs beyond sampling and scoring its pictures.

    ddpo train --config demo --trainer.iterations 1 --run_dir runs/cost
    python benchmarks/evaluation_cost.py runs/cost [--num_steps 50]

Both draw every picture of the run's evaluation, base and tuned, and score it by every reward and
judge: once with nothing else, once as `ddpo evaluate` does, with keys, files, divergences,
trajectories, features, statistics, page and card. Loading the model counts in both. CPU seconds,
which other processes disturb less than the clock; the two take turns, and the smallest of each is
compared.

They still differ by a tenth from one time to the next on a shared machine. So the second line takes
an evaluation apart: what it spends outside of loading, sampling and scoring, in relation to what it
spends inside, in the same seconds. Rewards that are scored in the background while it does
something else count as outside, so that this is no less than it costs.
"""

import argparse
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from ddpo import config
from ddpo.building import build
from ddpo.config import Config
from ddpo.evaluation import matched
from ddpo.parallel.seeds import Purpose
from ddpo.rollout.sample import sample
from ddpo.runs.finished import Run
from ddpo.runs.judge import judge
from ddpo.scoring.scorer import Scorer


@torch.no_grad()
def bare(settings: Config) -> None:
    """Samples and scores, and nothing of them is kept."""
    run, own = Run(settings.run_dir, settings=settings), settings.evaluation
    judges = build.all_rewards(settings, run.policy)
    for column in ("base", run.remember("last")):
        for prompts in build.evaluation_sets(settings):
            repeated = [prompt for prompt in prompts for _ in range(own.samples_per_prompt)]
            keys = [(Purpose.EVALUATION, i) for i in range(len(repeated))]
            scorer = Scorer(judges, timeout_s=None, group_size=own.samples_per_prompt)
            with run.policy.weights(column):
                for part in sample(run.policy, run.sampler, repeated, keys):
                    texts = [prompt.text for prompt in part.prompts]
                    scorer.submit(part.images, texts, [prompt.metadata for prompt in part.prompts])
            scorer.collect()


def cpu_seconds(call: Callable[[], object]) -> float:
    before = time.process_time()
    call()
    return time.process_time() - before


class Clock:
    """CPU seconds within some functions of an evaluation."""

    def __init__(self) -> None:
        self.seconds, self.depth = 0.0, 0

    @contextmanager
    def running(self) -> Iterator[None]:
        self.depth += 1
        before = time.process_time()
        try:
            yield
        finally:
            self.depth -= 1
            if not self.depth:
                self.seconds += time.process_time() - before

    def timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def around(*args: Any, **kwargs: Any) -> Any:
            with self.running():
                return call(*args, **kwargs)

        return around

    def sampled(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        """What `sample` yields; what is done with it in between is not counted."""
        parts = iter(sample(*args, **kwargs))
        while True:
            with self.running():
                part = next(parts, None)
            if part is None:
                return
            yield part


def inside(call: Callable[[], object]) -> float:
    """CPU seconds that an evaluation spends in loading, sampling and scoring."""
    clock = Clock()
    with ExitStack() as patches:
        patches.enter_context(mock.patch.object(matched, "sample", clock.sampled))
        for owner, name in (
            *((Run, "__init__"), (build, "all_rewards")),
            *((Scorer, "submit"), (Scorer, "collect")),
        ):
            timed = mock.patch.object(owner, name, clock.timed(getattr(owner, name)))
            patches.enter_context(timed)
        call()
    return clock.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_dir")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--num_steps", type=int, help="of the chain; left out: the run's own")
    arguments = parser.parse_args()
    settings = config.load(config.of_run(arguments.run_dir))
    settings.run_dir = arguments.run_dir
    settings.sampler.num_steps = arguments.num_steps or settings.sampler.num_steps
    kept = [Path(arguments.run_dir) / name for name in ("pictures", "evaluation")]
    found: dict[str, list[float]] = {"bare": [], "evaluated": [], "inside": []}
    few = settings.model_copy(deep=True)
    few.evaluation.num_prompts = 1
    bare(few)  # what is imported and compiled once counts in neither
    for _ in range(arguments.repeats):
        found["bare"].append(cpu_seconds(lambda: bare(settings)))
        for folder in kept:
            shutil.rmtree(folder, ignore_errors=True)
        before = time.process_time()
        found["inside"].append(inside(lambda: judge(settings)))
        found["evaluated"].append(time.process_time() - before)
        print({name: [round(each, 1) for each in times] for name, times in found.items()})
    least = {name: min(times) for name, times in found.items()}
    more = least["evaluated"] / least["bare"] - 1
    print(f"{least['evaluated']:.1f} s against {least['bare']:.1f} s bare: {more:+.1%}")
    pairs = zip(found["evaluated"], found["inside"], strict=True)
    shares = [f"{whole / part - 1:.1%}" for whole, part in pairs]
    print(f"outside of loading, sampling and scoring: {', '.join(shares)}")


if __name__ == "__main__":
    main()
