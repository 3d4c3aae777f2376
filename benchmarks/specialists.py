"""A model conditioned on weights: its corners, its mixtures, and a specialist for each reward.

    python benchmarks/specialists.py RUN[@CHECKPOINT] redness=SPECIALIST_DIR ...

A specialist was trained on that reward alone; without one, its corner stands by itself. `share` is
the conditioned model's gain over the base at that reward's corner, relative to the specialist's;
`fronts` hold the means of all rewards at mixtures from one corner to the other, and `spearman` the
rank correlation of each reward with its weight there. Over the prompts of the run, `--seeds` (2)
each, the same for all; `--lora_scale` and `--taste_scale` (1) are those of the conditioned model's
pictures, as of `ddpo sample`. Prints one JSON object.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import combinations
from typing import Any

import numpy as np

from ddpo.building import build
from ddpo.images import from_pil
from ddpo.rewards import Reward
from ddpo.runs.finished import Run

POINTS = 6
"""Mixtures of two rewards, both corners among them."""

Means = Mapping[str, float]


class Bench:
    """Means of a run's rewards and judges over its prompts, so many seeds each."""

    def __init__(self, run: Run, column: str, seeds: int, **scales: float) -> None:
        self.run, self.column, self.scales = run, column, scales
        prompts = [p for p in build.plain_prompts(run.config).prompts for _ in range(seeds)]
        self.texts, self.metadata = [p.text for p in prompts], [p.metadata for p in prompts]
        self.judges: Sequence[Reward] = build.all_rewards(run.config, run.policy)
        self.names = [judge.name for judge in self.judges[: len(run.config.rewards)]]
        self.conditioned = cache(self._conditioned)

    def means(self, run: Run, column: str = "tuned", **more: Any) -> Means:
        """With `more` of what `Run.sample` takes: a taste, and scales."""
        seeds = list(range(len(self.texts)))
        images = from_pil(run.sample(self.texts, seeds, column, **more))
        scores = [judge(images, self.texts, self.metadata) for judge in self.judges]
        found = zip(self.judges, scores, strict=True)
        return {judge.name: score.nanmean().item() for judge, score in found}

    def _conditioned(self, mixture: frozenset[tuple[str, float]]) -> Means:
        """Of the conditioned model at a mixture, drawn once."""
        taste = self.run.taste.of(dict(mixture))
        return self.means(self.run, self.column, taste=taste, **self.scales)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", metavar="RUN[@CHECKPOINT]")
    parser.add_argument("specialists", nargs="*", metavar="REWARD=RUN_DIR")
    parser.add_argument("--seeds", type=int, default=2)
    for scale in ("lora_scale", "taste_scale"):
        parser.add_argument(f"--{scale}", type=float, default=1.0)
    arguments = parser.parse_args()
    folder, _, checkpoint = arguments.run.partition("@")
    scales = {"lora_scale": arguments.lora_scale, "taste_scale": arguments.taste_scale}
    bench = Bench(Run(folder), checkpoint or "tuned", arguments.seeds, **scales)
    specialists = dict(word.split("=", 1) for word in arguments.specialists)
    if unknown := specialists.keys() - set(bench.names):
        parser.error(f"no reward of this run: {', '.join(sorted(unknown))}")
    base = bench.means(bench.run, "base")
    corners = {name: corner(bench, base, name, specialists.get(name)) for name in bench.names}
    fronts = [front(bench, *pair) for pair in combinations(bench.names, 2)]
    nobody = bench.means(bench.run, bench.column, lora_scale=arguments.lora_scale)
    found = {"base": base, "nobody": nobody, "corners": corners, "fronts": fronts}
    print(json.dumps(found, indent=1))


def corner(bench: Bench, base: Means, name: str, specialist: str | None) -> dict[str, Any]:
    """The conditioned model where that reward is all that counts, beside the one trained on it."""
    conditioned = at(bench, {name: 1.0})
    if specialist is None:
        return {"conditioned": conditioned}
    alone = bench.means(Run(specialist))
    share = (conditioned[name] - base[name]) / (alone[name] - base[name])
    return {"conditioned": conditioned, "specialist": alone, "share": share}


def at(bench: Bench, mixture: Mapping[str, float]) -> Means:
    return bench.conditioned(frozenset((name, share) for name, share in mixture.items() if share))


def front(bench: Bench, first: str, second: str) -> dict[str, Any]:
    """From the second reward alone to the first alone."""
    shares = np.linspace(0, 1, POINTS).round(6).tolist()
    means = [at(bench, {first: share, second: round(1 - share, 6)}) for share in shares]
    weights = {first: shares, second: [1 - share for share in shares]}
    ranks = {name: spearman(weights[name], [mean[name] for mean in means]) for name in weights}
    return {"rewards": (first, second), "shares": shares, "means": means, "spearman": ranks}


def spearman(one: Sequence[float], other: Sequence[float]) -> float:
    """Of values without ties."""
    first, second = (np.argsort(np.argsort(values)) for values in (one, other))
    return float(np.corrcoef(first, second)[0, 1])


if __name__ == "__main__":
    main()
