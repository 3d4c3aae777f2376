"""Where a run's numbers and pictures go besides metrics.jsonl: tensorboard and wandb, when asked."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.tracking import TensorBoardTracker, WandBTracker
from PIL import Image


class Trackers:
    """The external trackers of a run; on every rank but the first, none."""

    def __init__(self, names: Sequence[str], run_dir: Path, config: Mapping[str, Any]) -> None:
        self._trackers: list[TensorBoardTracker | WandBTracker] = []
        for name in names:
            if name == "tensorboard":
                self._trackers.append(
                    TensorBoardTracker(run_dir.name, logging_dir=str(run_dir / "tensorboard"))
                )
            elif name == "wandb":
                self._trackers.append(WandBTracker("ddpo", name=run_dir.name, dir=str(run_dir)))
        for tracker in self._trackers:
            tracker.start()
            tracker.store_init_configuration(flat(config) if tracker.name == "tensorboard" else dict(config))

    def log(self, row: Mapping[str, float], step: int) -> None:
        for tracker in self._trackers:
            tracker.log({key: value for key, value in row.items() if value is not None}, step=step)

    def log_images(self, pictures: Sequence[Image.Image], captions: Sequence[str], step: int) -> None:
        """Pictures captioned `prompt | reward`."""
        for tracker in self._trackers:
            if isinstance(tracker, TensorBoardTracker):
                for picture, caption in zip(pictures, captions, strict=True):
                    prompt = caption.split(" | ")[0]
                    tracker.writer.add_image(
                        f"samples/{prompt}", np.asarray(picture), step, dataformats="HWC"
                    )
                    tracker.writer.add_text(f"samples/{prompt}", caption, step)
            else:
                import wandb  # pyright: ignore[reportMissingImports]

                images = [wandb.Image(p, caption=c) for p, c in zip(pictures, captions, strict=True)]
                tracker.log({"samples": images}, step=step)

    def finish(self) -> None:
        for tracker in self._trackers:
            tracker.finish()


def flat(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, int | float | str | bool]:
    """Dotted names and plain values, which is all that tensorboard takes."""
    found: dict[str, int | float | str | bool] = {}
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value if isinstance(value, int | float | str | bool) else str(value)
    return found
