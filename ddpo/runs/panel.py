"""The evaluations of a run on its way: evaluations.jsonl, the best one, and over-optimization."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ddpo.config import Config
from ddpo.evaluation import overoptimization, spread
from ddpo.evaluation.matched import Shot
from ddpo.evaluation.overoptimization import Alarm, Names
from ddpo.records import metrics
from ddpo.rewards import Reward
from ddpo.scoring.encoding import Encode

FILE = "evaluations.jsonl"


class Panel:
    """Every evaluation since iteration 0, in a run's folder: scores, KL, diversity, guards.

    `judges` are the trained rewards and the others, in this order.
    """

    def __init__(
        self, folder: Path, settings: Config, judges: Sequence[Reward], guards: Sequence[str]
    ) -> None:
        self.file, self.settings = folder / FILE, settings
        trained = {reward.name: reward.weight for reward in judges[: len(settings.rewards)]}
        weighed = {name: weight for name, weight in trained.items() if weight}
        others = [reward.name for reward in judges if reward.name not in trained]
        self.names = Names(weighed, others, guards)
        self.rows: list[dict[str, Any]] = []

    def cut(self, iteration: int, writes: bool) -> None:
        """Go back to the evaluations until this iteration: those that a resume goes on from."""
        self.rows = [row for row in metrics.read(self.file) if row["iteration"] <= iteration]
        if writes:
            metrics.cut(self.file, iteration)

    def add(
        self, iteration: int, shots: Sequence[Shot], encode: Encode | None, writes: bool
    ) -> dict[str, float]:
        """One evaluation; returns the means of all that it measured."""
        names = list(shots[0].scores)
        scores = {name: [shot.scores[name] for shot in shots] for name in names}
        means = {name: _mean(values) for name, values in scores.items()}
        if divergences := [shot.kl for shot in shots if shot.kl is not None]:
            means["kl"] = _mean(divergences)
        prompts = [shot.prompt for shot in shots]
        if encode is not None:
            features = encode([shot.image for shot in shots]).astype(np.float64)
            means |= spread.diversity(features, prompts)
        row = metrics.clean({"iteration": iteration, "means": means, "prompts": prompts})
        row |= {"seeds": [shot.seed for shot in shots], "scores": metrics.clean(scores)}
        # a resume may ask for others, which cannot be compared with these
        self.rows = [each for each in self.rows if _alike(each, row)]
        self.rows.append(row)
        if writes:
            metrics.write(self.file, self.rows[-1])
        return means

    def best(self, standing: float) -> float:
        """By what the last evaluation is compared with the others; NaN: it cannot be the best.

        `standing` is that of the trained rewards. `evaluation.best` says which: that; the judges'
        mean gain since iteration 0, each in standard deviations of its samples there; or that of
        the trained rewards while nothing shows over-optimization.
        """
        by = self.settings.evaluation.best or ("judge" if self.names.judges else "trained")
        first, last = self.rows[0], self.rows[-1]
        if by == "trained" or not self.names.judges:
            return standing
        if by == "front":
            return math.nan if overoptimization.sign(first, last, self.names)[0] else standing
        gains = [_gain(first["scores"][name], last["scores"][name]) for name in self.names.judges]
        known = [gain for gain in gains if math.isfinite(gain)]
        return sum(known) / len(known) if known else math.nan

    def alarm(self) -> Alarm | None:
        """Whether the rule of `overoptimization` fires at the last evaluation."""
        return overoptimization.alarm(self.rows, self.names)


def _alike(one: dict[str, Any], other: dict[str, Any]) -> bool:
    same = all(one.get(key) == other[key] for key in ("prompts", "seeds"))
    return same and one["scores"].keys() == other["scores"].keys()


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def _gain(first: Sequence[float | None], last: Sequence[float | None]) -> float:
    """The difference of means, in standard deviations of the first (1 where that is 0)."""
    before, after = (np.array([v for v in each if v is not None]) for each in (first, last))
    if not (len(before) and len(after)):
        return math.nan
    return float((after.mean() - before.mean()) / (before.std() or 1.0))
