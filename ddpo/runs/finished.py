"""A finished run, or one in progress, to sample from."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from PIL import Image

from ddpo import config
from ddpo.config import Config
from ddpo.images import to_pil
from ddpo.parallel.seeds import Purpose
from ddpo.prompts import Prompt
from ddpo.records import checkpoint
from ddpo.rollout.sample import sample
from ddpo.runs import build


class Run:
    """A run's base and tuned model: `ddpo.load("runs/demo").sample(["a fox"], seeds=[0])`."""

    def __init__(
        self,
        run_dir: str | Path,
        dtype: Literal["fp32"] | None = None,
        settings: Config | None = None,
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

    def remember(self, column: str = "tuned") -> str:
        """The name by which `policy.weights` puts that column in force: "base", or a checkpoint's.

        "tuned" and "last" are the newest checkpoint, "best" and "000020" as in `checkpoint.find`,
        which raises UserError for one that is not there. Averaged weights are taken where they were
        kept.
        """
        if column == "base":
            return column
        folder = checkpoint.find(self.folder, "last" if column == "tuned" else column)
        if folder.name not in self.policy.snapshots:
            tensors, _ = checkpoint.load(folder)
            values = tensors.get("ema", tensors["parameters"])
            checkpoint.check_parameters(self.policy.parameters(), values)
            device = self.policy.device
            self.policy.snapshots[folder.name] = {
                name: each.to(device) for name, each in values.items()
            }
        return folder.name

    @torch.no_grad()
    def sample(
        self, texts: Sequence[str], seeds: Sequence[int], column: str = "tuned"
    ) -> list[Image.Image]:
        """One picture for each prompt and seed, by "base", "tuned" or a checkpoint.

        They are made as in the evaluation.
        """
        keys = [(Purpose.EVALUATION, seed) for seed in seeds]
        prompts = [Prompt(text) for text in texts]
        with self.policy.weights(self.remember(column)):
            parts = list(sample(self.policy, self.sampler, prompts, keys))
        return [image for part in parts for image in to_pil(part.images)]
