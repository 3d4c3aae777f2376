"""How often the 95 % intervals of an evaluation hold the truth, over simulated evaluations.

    python benchmarks/intervals.py [--trials 2000] [--prompts 10 45 200]

Each evaluation has P prompts of two samples: the difference of a prompt, drawn from a distribution
of mean 0, plus noise of each sample. Beside the interval over prompts, as an evaluation has it,
stand the plain percentile bootstrap over prompts, and that over all samples as if they were
independent, which ddpo had before. Of 2,000 resamples each, drawn anew in every evaluation.
"""

import argparse

import numpy as np

from ddpo.evaluation import stats

PROMPTS, PER_PROMPT = (10, 45, 200), 2
DISTRIBUTIONS = {
    "normal": lambda rng, n: rng.normal(size=n),
    "exponential": lambda rng, n: rng.exponential(size=n) - 1,
}
NOISE = {"noise 1": 1.0, "noise 0.3": 0.3}
COLUMNS = ("over prompts", "percentile", "over samples")


def covered(prompts: int, values: np.ndarray) -> list[bool]:
    """Whether each kind of interval holds 0."""
    names = [str(i // PER_PROMPT) for i in range(len(values))]
    base = np.zeros_like(values)
    ours = stats.paired(base, values, names)
    clusters = stats.Clusters(
        values.reshape(prompts, -1).sum(1), np.full(prompts, PER_PROMPT, float)
    )
    alone = stats.Clusters(values, np.ones_like(values))
    ends = [(ours["low"], ours["high"]), stats.percentile(clusters), stats.percentile(alone)]
    return [low <= 0 <= high for low, high in ends]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--prompts", type=int, nargs="+", default=PROMPTS)
    arguments = parser.parse_args()
    stats.RESAMPLES = 2_000
    print(f"| prompts | differences | {' | '.join(COLUMNS)} |\n| --- | --- | --- | --- | --- |")
    for prompts in arguments.prompts:
        for name, draw in DISTRIBUTIONS.items():
            for words, noise in NOISE.items():
                rng = np.random.default_rng(prompts)
                held = np.zeros(len(COLUMNS))
                for trial in range(arguments.trials):
                    stats.SEED = trial  # else the error of few resamples would be that of all
                    own = draw(rng, prompts).repeat(PER_PROMPT)
                    held += covered(prompts, own + noise * rng.normal(size=len(own)))
                shares = " | ".join(f"{100 * each:.1f} %" for each in held / arguments.trials)
                print(f"| {prompts} | {name}, {words} | {shares} |", flush=True)


if __name__ == "__main__":
    main()
