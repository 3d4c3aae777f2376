"""A finished run, or one in progress, to sample from."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from PIL import Image
from torch import Tensor

from ddpo import config
from ddpo.building import build
from ddpo.building.personal import source
from ddpo.config import Config
from ddpo.errors import UserError
from ddpo.models import Policy
from ddpo.models._shared.snapshots import scaled
from ddpo.parallel.seeds import Purpose
from ddpo.prompts import Prompt
from ddpo.records import checkpoint
from ddpo.rollout.sample import sample
from ddpo.rollout.store import digest, weights_of
from ddpo.tastes import Taste


class Run:
    """A run's base and tuned model: `ddpo.load("runs/demo").sample(["a fox"], seeds=[0])`."""

    def __init__(
        self,
        run_dir: str | Path,
        dtype: Literal["fp32"] | None = None,
        settings: Config | None = None,
        policy: Policy | None = None,
    ) -> None:
        """`settings`, which are resolved, take the place of the run's own, as `dtype` of theirs.
        `policy` is the model of these settings where it is loaded already.

        Raises UserError for what is not the folder of a run.
        """
        self.folder = Path(run_dir)
        self.config = settings or config.load(config.of_run(run_dir))
        if dtype:
            self.config = config.in_precision(self.config, dtype)
        self.policy = policy or build.policy(self.config)
        self.digest = ""
        self.sampler = build.evaluation_sampler(self.config, self.policy)
        self.checkpoints = {path.name: path for path in checkpoint.all_of(self.folder)}

    def base_digest(self) -> str:
        """A hash of all weights of the base, whatever file they came from."""
        self.digest = self.digest or digest(weights_of(self.policy.modules))
        return self.digest

    @cached_property
    def taste(self) -> Taste:
        """Where the run's tastes come from. Raises UserError where it has none."""
        if self.config.model.taste is None:
            raise UserError(f"{self.folder} was trained without model.taste; it knows no tastes")
        return source(self.config, build.plain_prompts(self.config))

    def remember(
        self, column: str = "tuned", lora_scale: float = 1.0, taste_scale: float = 1.0
    ) -> str:
        """The name by which `policy.weights` puts that column in force: "base", or a checkpoint's.

        "tuned" and "last" are the newest checkpoint, "best" and "000020" as in `checkpoint.find`,
        which raises UserError for one that is not there. Averaged weights are taken where they were
        kept. `lora_scale` goes that part of the way from the base to the column, `taste_scale` that
        part of the way from nobody's taste to a prompt's.
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
        if lora_scale == taste_scale == 1.0:
            return folder.name
        name = f"{folder.name} at scales {lora_scale:g} and {taste_scale:g}"
        snapshots = self.policy.snapshots
        scales = lora_scale, taste_scale
        snapshots[name] = scaled(snapshots[folder.name], snapshots.get("base"), *scales)
        return name

    @torch.no_grad()
    def sample(
        self,
        texts: Sequence[str],
        seeds: Sequence[int],
        column: str = "tuned",
        lora_scale: float = 1.0,
        taste: Tensor | None = None,
        taste_scale: float = 1.0,
    ) -> list[Image.Image]:
        """One picture for each prompt and seed, by "base", "tuned" or a checkpoint.

        They are made as in the evaluation. The scales as in `remember`. `taste`, as `taste.of` of
        the run gives one, is whose they are rendered to; None: nobody's.
        """
        keys = [(Purpose.EVALUATION, seed) for seed in seeds]
        prompts = [Prompt(text, taste=taste) for text in texts]
        with self.policy.weights(self.remember(column, lora_scale, taste_scale)):
            parts = list(sample(self.policy, self.sampler, prompts, keys))
        return [picture for part in parts for picture in self.policy.medium.pictures(part.images)]
