"""Where a run's numbers and pictures go besides metrics.jsonl: tensorboard and wandb."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from accelerate.tracking import TensorBoardTracker, WandBTracker
from PIL import Image

from ddpo.records.files import whole


class Trackers:
    """The external trackers of a run; on every rank but the first, none.

    A run that is resumed goes on in the same run of wandb: its id lies in the run folder. wandb
    takes no step twice, so that of iterations which a resume repeats it keeps the first rows (the
    same numbers).
    """

    def __init__(
        self, names: Sequence[str], run_dir: Path, config: Mapping[str, Any], project: str = "ddpo"
    ) -> None:
        self._trackers: list[TensorBoardTracker | WandBTracker] = []
        if "tensorboard" in names:
            flat = dict(leaves(config))  # dotted names and plain values are all that it takes
            self._add(TensorBoardTracker(run_dir.name, logging_dir=run_dir / "tensorboard"), flat)
        if "wandb" in names:
            same = {"id": _wandb_id(run_dir), "resume": "allow"}
            self._add(
                WandBTracker(project, name=run_dir.name, dir=str(run_dir), **same), dict(config)
            )

    def _add(self, tracker: TensorBoardTracker | WandBTracker, config: dict[str, Any]) -> None:
        tracker.start()
        tracker.store_init_configuration(config)
        self._trackers.append(tracker)

    def log(self, row: Mapping[str, float], step: int) -> None:
        for tracker in self._trackers:
            tracker.log({key: value for key, value in row.items() if value is not None}, step=step)

    def log_images(
        self, pictures: Sequence[Image.Image], captions: Sequence[str], step: int
    ) -> None:
        """Pictures captioned `prompt | reward`."""
        both = list(zip(pictures, captions, strict=True))
        for tracker in self._trackers:
            if isinstance(tracker, TensorBoardTracker):
                for picture, caption in both:
                    place = f"samples/{caption.split(' | ')[0]}"
                    tracker.writer.add_image(place, np.asarray(picture), step, dataformats="HWC")
                    tracker.writer.add_text(place, caption, step)
            else:
                import wandb  # pyright: ignore[reportMissingImports]

                images = [wandb.Image(picture, caption=caption) for picture, caption in both]
                tracker.log({"samples": images}, step=step)

    def finish(self) -> None:
        for tracker in self._trackers:
            tracker.finish()


def _wandb_id(run_dir: Path) -> str:
    """The run's id in wandb, from wandb/run_id, which the first start writes."""
    file = run_dir / "wandb" / "run_id"
    if not file.is_file():
        with whole(file) as aside:
            aside.write_text(uuid4().hex, encoding="utf-8")
    return file.read_text(encoding="utf-8")


def leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Every plain value in nested dicts and lists, with its dotted name."""
    if isinstance(value, (Mapping, list)):
        for key, inner in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from leaves(inner, f"{place}.{key}".lstrip("."))
    else:
        yield place, value
