"""How often the rule for over-optimization fires without a reason, and how late with one.

    python benchmarks/detector.py [--trials 300]

Simulated trainings of 10 evaluations of 45 prompts with two samples each. The trained reward rises
by 0.2 of the prompts' standard deviation each time; the judge stays (a false alarm is one that
fires anywhere), or falls by `slope` each time from the first evaluation on.
"""

import argparse
import statistics

import numpy as np

from ddpo.evaluation import stats
from ddpo.evaluation.overoptimization import Names, alarm

PROMPTS, SAMPLES, EVALUATIONS = 45, 2, 10
NAMES = Names({"reward": 1.0}, ["judge"], [])
SLOPES = (0.0, 0.05, 0.1, 0.2)


def training(rng: np.random.Generator, slope: float) -> int | None:
    """The evaluation, from 1, at which the rule fires; None: at none.

    What a training changes differs from prompt to prompt, by half a standard deviation in all.
    """
    own = rng.normal(size=(2, PROMPTS)).repeat(SAMPLES, axis=1)
    drift = np.cumsum(0.5 / np.sqrt(EVALUATIONS) * rng.normal(size=(EVALUATIONS, 2, PROMPTS)), 0)
    prompts = [str(i // SAMPLES) for i in range(PROMPTS * SAMPLES)]
    rows = []
    for number in range(EVALUATIONS + 1):
        moved = drift[number - 1].repeat(SAMPLES, axis=1) if number else 0
        values = own + moved + 0.5 * rng.normal(size=own.shape)
        scores = {"reward": (values[0] + 0.2 * number).tolist()}
        scores["judge"] = (values[1] - slope * number).tolist()
        rows.append({"iteration": number, "prompts": prompts, "scores": scores})
        if alarm(rows, NAMES):
            return number
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=300)
    trials = parser.parse_args().trials
    stats.RESAMPLES = 500
    print("| the judge falls by, each time | fires in | median evaluation |\n| --- | --- | --- |")
    for slope in SLOPES:
        rng = np.random.default_rng(0)
        fired = [training(rng, slope) for _ in range(trials)]
        known = [number for number in fired if number is not None]
        median = f"{statistics.median(known):g}" if known else ""
        print(f"| {slope} | {100 * len(known) / trials:.0f} % | {median} |", flush=True)


if __name__ == "__main__":
    main()
