"""When a check is decided, and which run decides most for its time.

A check compares two arms at their common seeds. It is looked at with three seeds first, then after
each that is added: `held` or `not held` once the 95 % interval of its mean difference (Student's t
over seeds) excludes 0, `undecided` for good with eight seeds.
"""

import math
import statistics
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from study_arms import FIRST_SEEDS, MOST_SEEDS
from study_fronts import Limits, Measure, Result, gain_at_recognition

from ddpo.evaluation.stats import student_t

Pool = dict[tuple[str, str], dict[int, Result]]
"""(task, arm) -> seed -> result."""

BUDGETS = ("queries", "CPU")
"""What both arms of a check have equally much of."""

SAME = 1.05
"""Arms whose CPU times differ by less than this count as equally fast: runs of one arm differ by as
much."""

COSTS = {"prdp": 6.5, "p3o": 6.5}
OTHERS = 3.2
"""CPU-minutes of a run by its arm's first word, as long as none is there to tell."""


@dataclass(frozen=True)
class Verdict:
    """`word` is held, not held, undecided or not run; of the difference over `seeds` seeds."""

    word: str
    seeds: int = 0
    mean: float = math.nan
    half: float = math.inf

    @property
    def open(self) -> bool:
        """Whether another seed could decide it."""
        return self.word in ("undecided", "not run") and self.seeds < MOST_SEEDS


@dataclass(frozen=True)
class Check:
    """One inequality: the mean over common seeds of left - factor * right, of `measure`, is above
    0."""

    words: str
    task: str
    left: str
    right: str
    measure: Measure = gain_at_recognition
    factor: float = 1.0

    @property
    def arms(self) -> tuple[tuple[str, str], ...]:
        """Both, or the one that is compared with nothing."""
        return tuple(dict.fromkeys([(self.task, self.left), (self.task, self.right)]))

    def differences(self, pool: Pool, budget: str) -> list[float]:
        """One for each common seed, in their order."""
        sides = [pool.get((self.task, arm), {}) for arm in (self.left, self.right)]
        seeds = sorted(sides[0].keys() & sides[1].keys())
        if not seeds:
            return []
        left, right = (
            [self.measure(side[seed], limits) for seed in seeds]
            for side, limits in zip(sides, limits_of(sides, budget), strict=True)
        )
        return [a - self.factor * b for a, b in zip(left, right, strict=True)]

    def verdict(self, pool: Pool, budget: str = "queries") -> Verdict:
        """By all common seeds that there are."""
        return judged(self.differences(pool, budget))


def judged(differences: Sequence[float]) -> Verdict:
    """What so many seeds say."""
    seeds = len(differences)
    if not seeds:
        return Verdict("not run")
    mean, half = interval(differences)
    word = "undecided"
    if seeds >= FIRST_SEEDS and abs(mean) > half:
        word = "held" if mean > 0 else "not held"
    return Verdict(word, seeds, mean, half)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half the width of its 95 % interval over seeds (Student's t); infinite for one
    seed."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return mean, math.inf
    error = statistics.stdev(values) / math.sqrt(len(values))
    return mean, student_t(len(values) - 1) * error


def pace(seeds: dict[int, Result]) -> float:
    """CPU-seconds of training per iteration, over all runs of an arm: what else ran disturbs one
    run."""
    last = [result["checkpoints"][-1] for result in seeds.values()]
    return sum(each["train_cpu_s"] for each in last) / sum(each["iteration"] for each in last)


def limits_of(sides: Sequence[dict[int, Result]], budget: str) -> list[Limits]:
    """Of each arm: the iterations that the shortest whole training of all allows for, in CPU time;
    and the largest KL at which a run of the arm ends that stays closer to the base."""
    ends = [max(r["checkpoints"][-1]["kl"] for r in side.values()) for side in sides]
    limits = [Limits(kl=min(ends))] * len(sides)
    if budget == "queries":
        return limits
    longest = [max(r["checkpoints"][-1]["iteration"] for r in side.values()) for side in sides]
    paces = [pace(side) for side in sides]
    seconds = min(pace * length for pace, length in zip(paces, longest, strict=True))
    return [
        replace(each, last=SAME * seconds / pace) for each, pace in zip(limits, paces, strict=True)
    ]


Named = tuple[str, str, int]
"""Task, arm and seed of a run."""


def missing(check: Check, pool: Pool, budget: str) -> list[Named]:
    """The runs that the next look at an open check takes, the first seeds first."""
    verdict = check.verdict(pool, budget)
    if not verdict.open:
        return []
    upto = max(FIRST_SEEDS, verdict.seeds + 1)
    wanted = [(task, arm, seed) for seed in range(upto) for task, arm in check.arms]
    return [each for each in wanted if each[2] not in pool.get(each[:2], {})]


def cost(pool: Pool, task: str, arm: str) -> float:
    """CPU-minutes of a run of an arm, as those that there are took, else expected."""
    known = [result["cpu_s"] / 60 for result in pool.get((task, arm), {}).values()]
    return statistics.mean(known) if known else COSTS.get(arm.split("_")[0], OTHERS)


Rank = tuple[bool, int, float]
"""The lower, the sooner."""


def queue(
    rounds: Sequence[Sequence[Check]], pool: Pool, late: Collection[Check]
) -> Iterator[tuple[Rank, list[Named]]]:
    """Of every open check: its rank and the runs that it waits for.

    Checks without their first three seeds come before all others, round by round; further seeds go
    to the checks in `late` last; within all of these, those that cost the least come first.
    """
    for number, checks in enumerate(rounds):
        for check, budget in product(checks, BUDGETS):
            if wanted := missing(check, pool, budget):
                again = check.verdict(pool, budget).seeds >= FIRST_SEEDS
                minutes = sum(cost(pool, task, arm) for task, arm, _ in wanted)
                yield (again, int(check in late) if again else number, minutes), wanted


def next_run(
    rounds: Sequence[Sequence[Check]],
    pool: Pool,
    busy: Collection[Named] = (),
    late: Collection[Check] = (),
) -> Named | None:
    """The run that is made next; None: every check is decided, or busy.

    `rounds` are checks in order: the first seeds of a round come before those of the next one, and
    seeds are added only when all rounds have their first, to the checks in `late` last of all.
    """
    for _, wanted in sorted(queue(rounds, pool, late), key=lambda each: each[0]):
        for named in wanted:
            if named not in busy:
                return named
    return None


def wrongly_decided(trials: int = 20_000, seed: int = 0) -> float:
    """The share of checks between equal arms that are decided all the same, by looking after each
    seed from the third to the eighth: more than the 5 % of a single look."""
    values = np.random.default_rng(seed).normal(size=(trials, MOST_SEEDS))
    decided = np.zeros(trials, bool)
    for seeds in range(FIRST_SEEDS, MOST_SEEDS + 1):
        known = values[:, :seeds]
        error = known.std(axis=1, ddof=1) / math.sqrt(seeds)
        decided |= np.abs(known.mean(axis=1)) > student_t(seeds - 1) * error
    return float(decided.mean())
