"""A run, as far as what it costs depends on it."""

from dataclasses import dataclass
from typing import Any, Literal

import torch

from ddpo import config, plugins, prompts
from ddpo.config import Config, checks
from ddpo.objectives import Objective
from ddpo.parallel.sizes import Sizes
from ddpo.runs import build

AUTO: dict[str, Literal["bf16", "fp32"]] = {"GPU": "bf16", "CPU": "fp32"}
"""What `model.dtype: auto` most likely comes to; a plan has no device to look at."""


@dataclass(frozen=True)
class Plan:
    """A run, as far as its numbers depend on it.

    steps     of the sampler, those with a density, and the columns of a sample that enter a loss
    prompts   in the training set (0: a data set that is not here), in its part that is shown in
              pictures, in the set judged on the way
    policy    the model without its weights; None where its architecture is not known here
    """

    settings: Config
    objective: Objective
    processes: int
    steps: tuple[int, int, int]
    prompts: tuple[int, int, int]
    policy: Any = None

    @property
    def sizes(self) -> Sizes:
        return checks.sizes(self.settings)

    @property
    def samples(self) -> int:
        """Samples per prompt that are trained on."""
        every, extremes = self.sizes.samples_per_prompt, self.settings.advantage.keep_extremes
        return every if extremes is None else min(every, 2 * extremes)

    @property
    def guidance(self) -> float:
        """The guidance scale of the steps that are scored; sampling may have another."""
        own = self.settings.objective.guidance_scale
        return self.settings.sampler.guidance_scale if own is None else own


def plan(settings: Config, processes: int = 1) -> Plan:
    """Raises UserError for what a run of that many processes would refuse."""
    checks.check(settings, processes)
    if settings.model.dtype == "auto":
        settings = config.in_precision(settings, AUTO["GPU"])
    build.advantage(settings)
    objective = build.objective(settings)
    count = settings.sampler.num_steps
    policy = _outline(settings)
    dense = build.sampler(settings, policy).steps.stochastic if policy else torch.ones(count) > 0
    columns = settings.objective.draws or count
    if not objective.denoising_errors:
        columns = int(build.subset(settings, dense)(dense, torch.Generator()).sum())
    steps = (count, int(dense.sum()), columns)
    return Plan(settings, objective, processes, steps, _prompts(settings), policy)


def _prompts(settings: Config) -> tuple[int, int, int]:
    judged = settings.evaluation
    try:
        sets = build.evaluation_sets(settings)
        return len(build.prompt_set(settings)), len(sets[0]), len(sets[-1])
    except prompts.NotHere:
        shown = judged.num_prompts or settings.log.images
        held_out = (
            prompts.load(judged.prompts)[: judged.num_prompts] if judged.prompts else range(shown)
        )
        return 0, shown, len(held_out)


def _outline(settings: Config) -> Any:
    outline = getattr(plugins.load("models", settings.model.name), "outline", None)
    pipeline = outline and outline(
        settings.model.pretrained, settings.model.dtype, settings.lora is None
    )
    return pipeline and build.policy(settings, pipeline, torch.device("cpu"))
