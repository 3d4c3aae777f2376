"""How often the rule for over-optimization fires without a reason, and how late with one.

    python benchmarks/detector.py [--trials 300] [--judge scale | yes-or-no]

Simulated trainings of 10 evaluations of 45 prompts with two samples each. The trained reward rises
by 0.2 of the prompts' standard deviation each time. The judge stays (a false alarm is one that
fires anywhere) or falls from the first evaluation on: one on a scale by `slope` standard deviations
each time; one that says yes or no, as a captioner that names 99 % of the base's animals, by so many
points.
"""

import argparse
import statistics
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from ddpo.evaluation import stats
from ddpo.evaluation.overoptimization import Names, alarm

PROMPTS, SAMPLES, EVALUATIONS = 45, 2, 10
NAMES = Names({"reward": 1.0}, ["judge"], [])
SLOPES = {"scale": (0.0, 0.05, 0.1, 0.2), "yes-or-no": (0.0, 0.01, 0.02, 0.05, 0.1)}
FIRST = 0.99
"""What a judge that says yes or no says yes to at the start."""

Values = NDArray[np.float64]


def training(rng: np.random.Generator, kind: str, slope: float) -> int | None:
    """The evaluation, from 1, at which the rule fires; None: at none.

    What a training changes differs from prompt to prompt, by half a standard deviation in all.
    """
    own = rng.normal(size=(2, PROMPTS)).repeat(SAMPLES, axis=1)
    drift = np.cumsum(0.5 / np.sqrt(EVALUATIONS) * rng.normal(size=(EVALUATIONS, 2, PROMPTS)), 0)
    kept = rng.normal(size=PROMPTS * SAMPLES)  # of the samples, whose seeds are always the same
    prompts = [str(i // SAMPLES) for i in range(PROMPTS * SAMPLES)]
    rows = []
    for number in range(EVALUATIONS + 1):
        moved = drift[number - 1].repeat(SAMPLES, axis=1) if number else 0
        noise = 0.5 * rng.normal(size=own.shape)
        values = own + moved + noise
        scores = {"reward": (values[0] + 0.2 * number).tolist()}
        judged = values[1] - slope * number
        if kind == "yes-or-no":
            judged = answers(own[1] + kept + noise[1], slope * number)
        scores["judge"] = judged.tolist()
        rows.append({"iteration": number, "prompts": prompts, "scores": scores})
        if alarm(rows, NAMES):
            return number
    return None


def answers(values: Values, lost: float) -> Values:
    """1 for those samples that a share of FIRST - lost of all would have; half of what makes a
    sample hard is its prompt's."""
    deviation = np.sqrt(2.25)  # of the prompt 1, of the sample 1, of the evaluation 0.25
    threshold = NormalDist(0, float(deviation)).inv_cdf(1 - FIRST + lost)
    return (values > threshold).astype(float)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=300)
    parser.add_argument("--judge", choices=SLOPES, default="scale")
    given = parser.parse_args()
    stats.RESAMPLES = 500
    print("| the judge falls by, each time | fires in | median evaluation |\n| --- | --- | --- |")
    for slope in SLOPES[given.judge]:
        rng = np.random.default_rng(0)
        fired = [training(rng, given.judge, slope) for _ in range(given.trials)]
        known = [number for number in fired if number is not None]
        median = f"{statistics.median(known):g}" if known else ""
        print(f"| {slope} | {100 * len(known) / given.trials:.0f} % | {median} |", flush=True)


if __name__ == "__main__":
    main()
