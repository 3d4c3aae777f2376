"""What a taste costs: CPU seconds of an iteration with and without it, which take turns.

    python benchmarks/taste_cost.py configs/users/ppd_emoji.yaml

The configuration has a model.taste and pairs of users. Without the taste it trains a LoRA of rank
16 (plain Diffusion-DPO), with it the taste's layers, or both. The first iteration of each is not
counted. The users' pairs are read before: that happens once, and is a line of its own. Prints one
JSON object.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import yaml

from ddpo import config
from ddpo.building import build
from ddpo.config import Config

LORA = {"rank": 16, "alpha": 16}


def variants(file: str) -> dict[str, Config]:
    """The configurations that are compared, by name."""
    found = {}
    for name, taste, lora in (("lora", False, LORA), ("taste", True, None), ("both", True, LORA)):
        values = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
        values["lora"] = lora
        if taste:
            values["model"]["taste"]["contexts"] = 1  # so that one pass over the pairs reads all
        else:
            del values["model"]["taste"]
        found[name] = config.in_precision(config.load(values), "fp32")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config")
    parser.add_argument("--iterations", type=int, default=3)
    arguments = parser.parse_args()
    trainers = {name: build.trainer(each) for name, each in variants(arguments.config).items()}
    before = time.process_time()
    pairs = [trainers["taste"].prompts[i] for i in range(len(trainers["taste"].prompts))]
    reading = (time.process_time() - before) / len(pairs)
    trainers["both"].prompts = trainers["taste"].prompts
    seconds: dict[str, list[float]] = {name: [] for name in trainers}
    for turn in range(1 + arguments.iterations):
        for name, trainer in trainers.items():
            before = time.process_time()
            trainer.iterate()
            if turn:
                seconds[name].append(time.process_time() - before)
    read = {"pairs": len(pairs), "cpu_s_per_pair": round(reading, 4)}
    print(json.dumps({"reading": read, **table(seconds)}, indent=1))


def table(seconds: dict[str, list[float]]) -> dict[str, object]:
    """The median of each, all of them, and what it is relative to the LoRA's."""
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        name: {
            "cpu_s": [round(value, 2) for value in values],
            "median": round(medians[name], 2),
            "relative": round(medians[name] / medians["lora"], 3),
        }
        for name, values in seconds.items()
    }


if __name__ == "__main__":
    main()
