"""How an iteration grows with its images and with its steps: CPU time, and the memory of tensors.

    OMP_NUM_THREADS=1 python benchmarks/growth.py

Four sizes of each, in turn, on the tiny model. Time should be a line (R2 > 0.99), and memory that
of one call whatever the sizes, but for what is kept of the trajectories.
"""

import argparse
import json
import statistics
import time
from typing import Any

import torch

from ddpo import config
from ddpo.building import build
from ddpo.config import Config
from ddpo.models._tiny import tiny
from ddpo.planning.imaginary import Alive
from ddpo.training.trainer import Trainer

SIZES = {"images": (8, 16, 24, 32), "steps": (4, 8, 12, 16)}
FIXED = {"images": 8, "steps": 4}


def settings(images: int, steps: int) -> Config:
    return config.load(
        {
            "model": {"name": "stable_diffusion", "pretrained": "emoji", "dtype": "fp32"},
            "lora": {"rank": 4},
            "sampler": {"num_steps": steps, "guidance_scale": 3.0, "batch_size": 8},
            "rewards": [{"name": "brightness"}],
            "advantage": {"name": "batch"},
            "trainer": {
                "iterations": 1000,
                "prompts_per_iteration": images,
                "samples_per_prompt": 1,
                "minibatches": 1,
                "micro_batch": 8,
                "while_sampling": False,
            },
        }
    )


def trainer(images: int, steps: int) -> Trainer:
    with_tiny = build.policy

    def policy(wanted: Config) -> Any:
        return with_tiny(wanted, tiny(), torch.device("cpu"))

    build.policy = policy
    try:
        return build.trainer(settings(images, steps))
    finally:
        build.policy = with_tiny


def line(sizes: tuple[int, ...], values: list[float]) -> tuple[float, float]:
    """The slope of the line of least squares, and its R2."""
    slope, start = statistics.linear_regression(sizes, values)
    rest = sum((v - start - slope * s) ** 2 for s, v in zip(sizes, values, strict=True))
    spread = sum((v - statistics.fmean(values)) ** 2 for v in values)
    return slope, 1 - rest / spread


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    for kind, sizes in SIZES.items():
        trainers = [trainer(**{**FIXED, kind: size}) for size in sizes]
        peaks, kept = [], []
        for made in trainers:  # warms up, too
            with Alive() as alive:
                made.iterate()
            state = 4 * torch.Size(made.policy.latent_shape).numel()
            peaks.append(alive.peak)
            kept.append(state * made.sizes.images * (len(made.sampler.steps) + 1))
        times: list[list[float]] = [[] for _ in sizes]
        for _ in range(rounds):
            for made, taken in zip(trainers, times, strict=True):
                started = time.process_time()
                made.iterate()
                taken.append(time.process_time() - started)
        best = [min(taken) for taken in times]
        slope, r2 = line(sizes, best)
        flat = [peak - held for peak, held in zip(peaks, kept, strict=True)]
        found = {"sizes": sizes, "cpu_s": best, "slope": slope, "r2": r2}
        print(json.dumps({kind: {**found, "peak_bytes": peaks, "without_trajectories": flat}}))


if __name__ == "__main__":
    main()
