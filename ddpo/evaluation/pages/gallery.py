"""The cards of a page: the samples of one prompt and seed in every column, small and large."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ddpo.evaluation.evidence import Match
from ddpo.sequences import read_fasta

SIDE, QUALITY = 224, 70
"""Pixels along the longer side of what a card shows, and the quality of its WebP file. A picture
that is no larger is shown itself."""

SMALL_FILE = 8_000
"""Bytes of a picture that is shown itself, whatever its size: letters, say."""


@dataclass(frozen=True)
class Picture:
    """One column's sample on a card: the paths that the page links, and its text if it has one.

    steps  predictions of x_0 on the way to it, noisiest first, where they were kept
    """

    column: str
    large: str
    small: str
    width: int
    height: int
    text: str = ""
    steps: tuple[str, ...] = ()


@dataclass(frozen=True)
class Card:
    """A prompt and seed.

    table  the scores as JSON: one row for each score, one entry for each column; null: no value
    """

    set: str
    prompt: str
    seed: int
    pictures: tuple[Picture, ...]
    scores: tuple[tuple[float | None, ...], ...]

    @property
    def table(self) -> str:
        rounded = [[v if v is None else float(f"{v:.6g}") for v in row] for row in self.scores]
        return json.dumps(rounded, separators=(",", ":"))

    @property
    def steps(self) -> str:
        """The steps of each picture as JSON, or nothing where none were kept."""
        kept = [picture.steps for picture in self.pictures]
        return json.dumps(kept, separators=(",", ":")) if any(kept) else ""


def cards(
    evaluation: Path,
    matches: Sequence[Match],
    columns: Sequence[str],
    scores: Sequence[str],
    prefix: str = "evaluation/",
) -> list[Card]:
    """A card for each match of which a picture is there.

    `prefix` leads from the page to the folder `evaluation`. Small pictures are taken where
    `write_small` has written them.
    """
    texts = _texts(evaluation)
    found = []
    for match in matches:
        pictures = [
            _picture(evaluation, match, column, prefix, texts)
            for column in columns
            if column in match.images and (evaluation / match.images[column]).is_file()
        ]
        if pictures:
            names = [picture.column for picture in pictures]
            rows = tuple(
                tuple(_finite(match.scores[name].get(score)) for name in names) for score in scores
            )
            found.append(Card(match.set, match.prompt, match.seed, tuple(pictures), rows))
    return found


def write_small(evaluation: Path, matches: Sequence[Match]) -> None:
    """Write thumbs/*.webp for the large pictures that have none of their age yet."""
    for match in matches:
        for image in match.images.values():
            large, small = evaluation / image, _small(evaluation, image)
            if not large.is_file() or _is_newer(small, large):
                continue
            with Image.open(large) as picture:
                if max(picture.size) <= SIDE or large.stat().st_size <= SMALL_FILE:
                    continue
                shown = picture.convert("RGB")
            shown.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
            small.parent.mkdir(parents=True, exist_ok=True)
            # renamed, but not waited for until it is on disk: it can be made again at any time,
            # and waiting for hundreds of them takes longer than making them
            aside = small.with_name(f".{small.name}")
            shown.save(aside, "WEBP", quality=QUALITY, method=2)
            os.replace(aside, small)


def _is_newer(small: Path, large: Path) -> bool:
    """Whether the small picture is there, not empty, and no older than the large one."""
    try:
        about = small.stat()
    except FileNotFoundError:
        return False
    return about.st_size > 0 and about.st_mtime >= large.stat().st_mtime


def _picture(
    evaluation: Path,
    match: Match,
    column: str,
    prefix: str,
    texts: Mapping[tuple[str, str], str],
) -> Picture:
    image = match.images[column]
    small = _small(evaluation, image)
    shown = small if small.is_file() else evaluation / image
    with Image.open(shown) as picture:
        width, height = picture.size
    steps = sorted((evaluation / trajectory(image)).glob("*.webp"))
    paths = [path.relative_to(evaluation).as_posix() for path in (shown, *steps)]
    small_path, *step_paths = [prefix + path for path in paths]
    # the file of a column's sequences ends as those of its pictures do
    ending = Path(image).stem.removeprefix(f"{match.set}_{match.seed:05d}_")
    text = texts.get((f"{match.set}_{ending}", f"seed_{match.seed}"), "")
    return Picture(column, prefix + image, small_path, width, height, text, tuple(step_paths))


def trajectory(image: str) -> Path:
    """The folder below evaluation/ of the predictions of x_0 that led to an image."""
    return Path("trajectories") / Path(image).stem


def _small(evaluation: Path, image: str) -> Path:
    return evaluation / "thumbs" / Path(image).with_suffix(".webp")


def _texts(evaluation: Path) -> dict[tuple[str, str], str]:
    """The sequences of an evaluation, by the name of their file and their own."""
    files = sorted(evaluation.glob("*.fasta"))
    return {(file.stem, name): text for file in files for name, text in read_fasta(file)}


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
