"""What the chain aimed at on its way to a few samples: the x_0 that its steps predicted.

Kept beside the samples themselves, so that they are made once, and shown by the page.
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ddpo.models import Policy
from ddpo.records.files import whole
from ddpo.rollout.sample import Sampler
from ddpo.rollout.trajectory import Trajectory
from ddpo.samplers import NoiseSchedule

PER_SET, EVERY = 2, 20
"""Samples of a set whose trajectories are kept: one in EVERY, PER_SET at most, so that their cost
(STEPS decoded pictures each) stays small against that of the samples."""

STEPS, SIDE = 8, 256
"""Predictions of a trajectory, evenly spaced over its steps, and pixels along their longer side."""


def chosen(prompts: int, per_prompt: int) -> list[int]:
    """The numbers of the samples: the first ones of prompts evenly spaced over the set."""
    count = min(PER_SET, prompts, prompts * per_prompt // EVERY)
    return [prompts * i // count * per_prompt for i in range(count)]


@torch.no_grad()
def predictions(
    policy: Policy, sampler: Sampler, trajectory: Trajectory, row: int
) -> dict[int, Image.Image]:
    """By the number of the step, from 0: the x_0 that the weights in force predict at its x_t.

    At most STEPS of them, decoded. Empty for a model of sequences, whose steps fill in letters
    and predict no x_0 of noise.
    """
    if not isinstance(policy.schedule, NoiseSchedule):
        return {}
    places = np.linspace(0, len(sampler.steps) - 1, min(STEPS, len(sampler.steps))).round()
    columns = torch.tensor(places, dtype=torch.long, device=policy.device).unique()
    pictures: list[Image.Image] = []
    for part in columns.split(sampler.batch_size):
        x, timesteps = trajectory.latents[row, part], sampler.steps.timesteps[part]
        if row in trajectory.outputs:
            output = trajectory.outputs[row][part]
        else:
            condition = sampler.condition(policy, [trajectory.prompts[row]] * len(part))
            output = policy.predict(x, timesteps, condition, sampler.guidance_scale)
        x0 = policy.schedule.denoised(x.float(), output.float(), timesteps)
        pictures += policy.medium.pictures(policy.decode(x0))
    return dict(zip(columns.tolist(), pictures, strict=True))


def keep(
    policy: Policy, sampler: Sampler, trajectory: Trajectory, folders: Mapping[Path, int]
) -> None:
    """Write the predictions of each of these rows into its folder, whole or not at all."""
    for folder, row in folders.items():
        found = predictions(policy, sampler, trajectory, row)
        if not found:
            continue
        with whole(folder) as aside:
            aside.mkdir()
            for step, picture in found.items():
                picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
                name = f"step_{step + 1:03d}_of_{len(sampler.steps):03d}.webp"
                picture.save(aside / name, "WEBP", quality=90, method=2)


def folder_of(sample: Path) -> Path:
    """Where the predictions that led to a kept sample lie."""
    return sample.with_suffix(".steps")


def copy(sample: Path | None, target: Path) -> None:
    """Those of a kept sample, if it has any; no room is taken twice where the disk allows it."""
    if sample is None or not (source := folder_of(sample)).is_dir():
        return
    try:
        shutil.copytree(source, target, copy_function=os.link)
    except OSError:  # another file system, or one without links; copytree gathers its errors
        shutil.copytree(source, target, dirs_exist_ok=True)
