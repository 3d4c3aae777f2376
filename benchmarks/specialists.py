"""A model conditioned on weights against one specialist for each reward, at matched seeds.

    python benchmarks/specialists.py RUN_DIR redness=SPECIALIST_DIR jpeg_compressibility=...

A specialist was trained on that reward alone. `share` is the conditioned model's gain over the base
at that reward's corner, relative to the specialist's; `front` holds the means of all rewards at
mixtures from one corner to the other, and `spearman` the rank correlation of each reward with its
weight there. Over the prompts of the run, two seeds each. Prints one JSON object.
"""

import json
import sys
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

from ddpo.building import build
from ddpo.images import from_pil
from ddpo.rewards import Reward
from ddpo.runs.finished import Run

POINTS = 6
"""Mixtures of two rewards, both corners among them."""

SEEDS = 2


class Bench:
    """Means of a run's rewards over its prompts, `SEEDS` seeds each."""

    def __init__(self, run: Run) -> None:
        prompts = [p for p in build.plain_prompts(run.config).prompts for _ in range(SEEDS)]
        self.texts, self.metadata = [p.text for p in prompts], [p.metadata for p in prompts]
        self.judges: Sequence[Reward] = build.all_rewards(run.config, run.policy)
        self.names = [judge.name for judge in self.judges[: len(run.config.rewards)]]

    def means(self, run: Run, column: str = "tuned", taste: Any = None) -> dict[str, float]:
        seeds = list(range(len(self.texts)))
        images = from_pil(run.sample(self.texts, seeds, column, taste=taste))
        scores = [judge(images, self.texts, self.metadata) for judge in self.judges]
        found = zip(self.judges, scores, strict=True)
        return {judge.name: score.nanmean().item() for judge, score in found}


def main(run_dir: str, *specialists: str) -> None:
    run = Run(run_dir)
    bench = Bench(run)
    base, corners = bench.means(run, "base"), {}
    for word in specialists:
        name, _, folder = word.partition("=")
        conditioned = bench.means(run, taste=run.taste.of({name: 1}))
        alone = bench.means(Run(folder))
        share = (conditioned[name] - base[name]) / (alone[name] - base[name])
        corners[name] = {"conditioned": conditioned, "specialist": alone, "share": share}
    fronts = [front(run, bench, pair) for pair in combinations(bench.names, 2)]
    print(json.dumps({"base": base, "corners": corners, "fronts": fronts}, indent=1))


def front(run: Run, bench: Bench, pair: tuple[str, str]) -> dict[str, Any]:
    """From the second reward alone to the first alone."""
    shares = np.linspace(0, 1, POINTS).round(6).tolist()
    tastes = [run.taste.of({pair[0]: share, pair[1]: 1 - share}) for share in shares]
    means = [bench.means(run, taste=taste) for taste in tastes]
    weights = {pair[0]: shares, pair[1]: [1 - share for share in shares]}
    ranks = {name: spearman(weights[name], [mean[name] for mean in means]) for name in pair}
    return {"rewards": pair, "shares": shares, "means": means, "spearman": ranks}


def spearman(one: Sequence[float], other: Sequence[float]) -> float:
    """Of values without ties."""
    first, second = (np.argsort(np.argsort(values)) for values in (one, other))
    return float(np.corrcoef(first, second)[0, 1])


if __name__ == "__main__":
    main(*sys.argv[1:])
