"""A finished run, or one in progress, to sample from."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from PIL import Image

from ddpo import config
from ddpo.config import Config
from ddpo.images import to_pil
from ddpo.parallel.seeds import Purpose
from ddpo.records import checkpoint
from ddpo.rollout.sample import sample
from ddpo.runs import build


class Run:
    """A run's base and tuned model, to sample from: `ddpo.load("runs/demo").sample(["a fox"], seeds=[0])`."""

    def __init__(
        self, run_dir: str | Path, dtype: Literal["fp32"] | None = None, settings: Config | None = None
    ) -> None:
        """`settings`, which are resolved, take the place of the run's own, as `dtype` of theirs.

        Raises UserError for what is not the folder of a run.
        """
        self.folder = Path(run_dir)
        self.config = settings or config.load(config.of_run(run_dir))
        if dtype:
            self.config = config.in_precision(self.config, dtype)
        self.policy = build.policy(self.config)
        self.sampler = build.sampler(self.config, self.policy)
        self.checkpoints = {path.name: path for path in checkpoint.all_of(self.folder)}

    def use(self, column: str = "tuned") -> str:
        """Take a checkpoint's weights, averaged if that was kept; returns its name.

        "tuned" and "last" are the newest, "best" and "000020" as in `checkpoint.find`, which raises UserError
        for one that is not there.
        """
        found = checkpoint.find(self.folder, "last" if column == "tuned" else column)
        tensors, _ = checkpoint.load(found)
        checkpoint.restore_parameters(self.policy.parameters(), tensors.get("ema", tensors["parameters"]))
        return found.name

    def sample(self, texts: Sequence[str], seeds: Sequence[int], column: str = "tuned") -> list[Image.Image]:
        """One picture for each prompt and seed, by "base", "tuned" or a checkpoint; as in the evaluation."""
        keys = [(Purpose.EVALUATION, seed) for seed in seeds]
        if column != "base":
            self.use(column)
            parts = list(sample(self.policy, self.sampler, texts, keys))
        else:
            with self.policy.reference():
                parts = list(sample(self.policy, self.sampler, texts, keys))
        return [image for part in parts for image in to_pil(part.images)]
