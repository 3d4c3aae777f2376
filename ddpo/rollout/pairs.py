"""Recorded preferences: pairs of image files instead of a rollout, as DPO learns from.

A line of the prompts file reads {"prompt": "a fox", "chosen": "a.png", "rejected": "b.png"}; the
paths are relative to the file. A prompt may stand there several times.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image, ImageOps

from ddpo.errors import UserError
from ddpo.images import from_pil
from ddpo.models import Policy
from ddpo.prompts import Prompt, PromptSet
from ddpo.rollout.sample import chunks
from ddpo.rollout.trajectory import Trajectory

COLUMNS = ("chosen", "rejected")
"""The columns of a prompt's first and second sample."""


def check(pairs: PromptSet, folder: Path) -> None:
    """Raises UserError where a line lacks an image, or there is no such file."""
    for prompt in pairs:
        for column in COLUMNS:
            file = prompt.metadata.get(column)
            if not isinstance(file, str):
                raise UserError(
                    f"prompts.path: the line of {prompt.text!r} has no {column!r}; "
                    "name an image file"
                )
            if not (folder / file).is_file():
                raise UserError(
                    f"prompts.path: {column} of {prompt.text!r}: {folder / file}: no such file"
                )


def recorded(
    policy: Policy, prompts: Sequence[Prompt], folder: Path, batch_size: int
) -> Iterator[Trajectory]:
    """The images of (chosen, rejected, ...) as trajectories of their x_0 alone, chunk by chunk."""
    for indices, genuine in chunks(len(prompts), batch_size):
        files = [folder / str(prompts[i].metadata[COLUMNS[i % 2]]) for i in indices]
        images = from_pil([_picture(file, policy.image_size) for file in files])
        with torch.no_grad():
            latents = policy.encode(images.to(policy.device))[:genuine, None]
        nothing = torch.zeros(genuine, 0, dtype=torch.float64, device=policy.device)
        chosen = [prompts[i] for i in indices[:genuine]]
        yield Trajectory(indices[:genuine], chosen, latents, nothing, images[:genuine])


def _picture(file: Path, size: int | tuple[int, int]) -> Image.Image:
    """Cut to the policy's shape about the middle, and scaled."""
    height, width = (size, size) if isinstance(size, int) else size
    try:
        image = Image.open(file).convert("RGB")
        return ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
    except OSError as error:
        raise UserError(f"prompts.path: {file} cannot be read as an image ({error})") from error
