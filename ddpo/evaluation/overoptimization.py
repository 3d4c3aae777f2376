"""Signs of over-optimization in the evaluations of a training, by a rule that is written down.

A row is one evaluation: {"iteration", "prompts", "scores": {name: a value or null for each
sample}}, the first one of iteration 0, all of the same prompts and seeds. Differences to that one
are taken by the 95 % interval, paired by seed and over prompts. An evaluation has a sign where

- the trained reward lies above that of iteration 0, and a judge below its own; or
- a guard's mean left [1/3, 3] of what it was at iteration 0, and a judge lies below its own, or
  there is none to ask. A guard alone proves nothing where there is a judge: a training may aim at
  what it measures, as compressibility does at fewer edges.

The rule fires at a sign of the guards at once, and at signs of judges twice in a row. How often it
fires without a reason, and how late, benchmarks/detector.py simulates and detector_runs.py
measures.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ddpo.evaluation import stats

GUARD_RANGE = (1 / 3, 3.0)
"""Of a guard's mean, relative to iteration 0."""

IN_A_ROW = 2
"""Evaluations with a sign of judges before the rule fires: one in 40 intervals lies below 0 by
chance."""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Names:
    """What of a row's scores is what: trained rewards with their weights, judges, guards."""

    trained: Mapping[str, float]
    judges: Sequence[str]
    guards: Sequence[str]


@dataclass(frozen=True)
class Alarm:
    """The rule fired at `iteration`; `good` is the last evaluation before the first sign."""

    iteration: int
    good: int
    reason: str


def total(row: Row, names: Names) -> np.ndarray:
    """The weighted sum of trained rewards of each sample; NaN without a value."""
    return sum(
        (weight * _values(row, name) for name, weight in names.trained.items()),
        np.zeros(len(row["prompts"])),
    )


def difference(first: Row, row: Row, name: str) -> dict[str, float]:
    """Of one score, `row` less `first`, with its interval over prompts."""
    return stats.paired(_values(first, name), _values(row, name), row["prompts"])


def sign(first: Row, row: Row, names: Names) -> tuple[str, bool]:
    """What is wrong with an evaluation, in words ("": nothing), and whether it is a guard's."""
    fallen = _fallen(first, row, names)
    if fallen or not names.judges:
        for name in names.guards:
            before, after = (np.nanmean(_values(each, name)) for each in (first, row))
            low, high = GUARD_RANGE
            if before and math.isfinite(after) and not low <= after / before <= high:
                also = f", and {fallen}" if fallen else ""
                return f"{name} went from {before:.3g} to {after:.3g}{also}", True
    gain = stats.paired(total(first, names), total(row, names), row["prompts"])
    if fallen and gain["low"] > 0:
        return f"{fallen} while the trained reward rose by {gain['mean']:.3g}", False
    return "", False


def _fallen(first: Row, row: Row, names: Names) -> str:
    """Of the first judge that lies below what it was: in words; "" where none does."""
    for name in names.judges:
        change = difference(first, row, name)
        if change["high"] < 0:
            interval = f"95 % interval {change['low']:.3g} to {change['high']:.3g}"
            return f"{name}, never trained on, fell by {-change['mean']:.3g} ({interval})"
    return ""


def alarm(rows: Sequence[Row], names: Names) -> Alarm | None:
    """Whether the rule fires at the last of the rows."""
    signs = [sign(rows[0], row, names) for row in rows[1:]]
    if not signs or not signs[-1][0]:
        return None
    in_a_row = next((i for i, (words, _) in enumerate(reversed(signs)) if not words), len(signs))
    if not signs[-1][1] and in_a_row < IN_A_ROW:
        return None
    good = rows[len(rows) - 1 - in_a_row]
    return Alarm(rows[-1]["iteration"], good["iteration"], signs[-1][0])


def _values(row: Row, name: str) -> np.ndarray:
    return np.array([math.nan if v is None else v for v in row["scores"][name]], float)
