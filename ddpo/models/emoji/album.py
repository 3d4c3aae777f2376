"""Scenes drawn ahead, by all cores: `python -m ddpo.models.emoji.album --count 200000`.

A scene costs 2 ms of a core, which is more than a GPU needs to learn from it. So the endless series
of `autoencoder.scenes` is drawn once, in files of `SHARD` scenes, from its beginning on.
"""

import argparse
import os
import random
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from .scenes import SIZE, draw, random_caption

SHARD = 2_000
"""Scenes in a file: 25 MB."""


def shard(number: int, folder: Path) -> Path:
    """File `number` of the album, drawn if it is not there: uint8 `(SHARD, 3, 64, 64)`."""
    file = folder / f"{number:05d}.npy"
    if file.is_file():
        return file
    pictures = np.empty((SHARD, 3, SIZE, SIZE), np.uint8)
    for i, index in enumerate(range(number * SHARD, (number + 1) * SHARD)):
        text = random_caption(random.Random(f"caption {index}"))
        pictures[i] = np.asarray(draw(text, index)).transpose(2, 0, 1)
    unfinished = file.with_suffix(f".{os.getpid()}")
    with open(unfinished, "wb") as stream:
        np.save(stream, pictures)
    os.replace(unfinished, file)
    return file


def _shard(job: tuple[int, Path]) -> Path:
    return shard(*job)


def album(count: int, folder: Path, processes: int | None = None) -> list[Path]:
    """Files that hold the first `count` scenes (a multiple of `SHARD`) of the series, in order.

    `processes`: as many as there are cores by default. Raises ValueError for another count.
    """
    if count % SHARD:
        raise ValueError(f"{count} scenes are no multiple of the {SHARD} in a file")
    folder.mkdir(parents=True, exist_ok=True)
    jobs = [(number, folder) for number in range(count // SHARD)]
    missing = [job for job in jobs if not (folder / f"{job[0]:05d}.npy").is_file()]
    workers = min(processes or len(os.sched_getaffinity(0)), len(missing))
    if workers > 1:
        with get_context("spawn").Pool(workers) as pool:
            pool.map(_shard, missing, chunksize=1)
    return [shard(*job) for job in jobs]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, required=True, help=f"scenes, a multiple of {SHARD}")
    parser.add_argument("--folder", type=Path, default=Path("runs/pretrain/album"))
    parser.add_argument("--processes", type=int, help="default: as many as there are cores")
    arguments = parser.parse_args()
    album(arguments.count, arguments.folder, arguments.processes)


if __name__ == "__main__":
    main()
