"""How well `ddpo plan --calibrate` foretells an iteration: its seconds beside those of iterations.

    OMP_NUM_THREADS=1 python benchmarks/calibration.py smoke demo

Both are counted in CPU time of this process, as other programs may use the machine, and in turn.
"""

import argparse
import json
import statistics
import time

from ddpo import config
from ddpo.building import build
from ddpo.planning import calibrate

time.perf_counter = time.process_time


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("configs", nargs="+")
    parser.add_argument("--rounds", type=int, default=2)
    given = parser.parse_args()
    for name in given.configs:
        settings = config.load(name)
        settings = config.in_precision(settings, "fp32")
        trainer = build.trainer(settings)
        trainer.iterate()
        errors, seconds = [], []
        for _ in range(given.rounds):
            foretold = calibrate.seconds(settings)["iteration"]
            taken = trainer.iterate()["time/total"]
            errors.append(foretold / taken - 1)
            seconds.append((foretold, taken))
        median = statistics.median(errors)
        print(json.dumps({"config": name, "error": median, "foretold_taken_s": seconds}))


if __name__ == "__main__":
    main()
