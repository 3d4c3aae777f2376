"""A run, as far as what it costs depends on it."""

from dataclasses import dataclass
from typing import Any, Literal

import torch

from ddpo import config, plugins, prompts
from ddpo.building import build
from ddpo.building.while_sampling import gradient_layers
from ddpo.config import Config, checks
from ddpo.objectives import Objective
from ddpo.parallel.sizes import Sizes
from ddpo.planning import imaginary
from ddpo.prompts import Share

AUTO: dict[str, Literal["bf16", "fp32"]] = {"GPU": "bf16", "CPU": "fp32"}
"""What `model.dtype: auto` most likely comes to; a plan has no device to look at."""


@dataclass(frozen=True)
class Plan:
    """A run, as far as its numbers depend on it.

    steps     of the sampler, those with a density, and the columns of a sample that enter a loss
    prompts   in the training set (0: a data set that is not here), in its part that is shown in
              pictures, in the set judged on the way
    policy    the model without its weights; None where its architecture is not known here
    dense     for each step of the sampler, whether it has a density
    collects  the first update's gradient is collected while images are sampled
    judged_steps  of the sampler of evaluations, those with a density
    shares    of a mixture of prompt sets, those of each; (): it is one set, or not here
    """

    settings: Config
    objective: Objective
    processes: int
    steps: tuple[int, int, int]
    prompts: tuple[int, int, int]
    policy: Any = None
    dense: tuple[bool, ...] = ()
    collects: bool = False
    judged_steps: int = 0
    shares: tuple[Share, ...] = ()

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
    window = settings.sampler.sde_window
    inside = min(count, window.size) if window else count
    dense = torch.arange(count) < inside
    judged_steps = (settings.evaluation.sampler or settings.sampler).num_steps
    if policy:
        build.check_fit(settings, policy, objective)
        dense = build.sampler(settings, policy).at(0).steps.stochastic
        # refuses as the run would
        judged = build.evaluation_sampler(settings, policy)
        judged_steps = int(judged.steps.stochastic.sum())
    columns = objective.draws(settings.objective.draws or count)
    if objective.scores_steps:
        columns = int(build.subset(settings, dense)(dense, torch.Generator()).sum())
    steps = (count, int(dense.sum()), columns)
    layers = policy and gradient_layers(settings, objective, policy, processes)
    (shown, shares), collects = _prompts(settings), layers is not None
    return Plan(
        settings,
        objective,
        processes,
        steps,
        shown,
        policy,
        tuple(dense.tolist()),
        collects,
        judged_steps,
        shares,
    )


def _prompts(settings: Config) -> tuple[tuple[int, int, int], tuple[Share, ...]]:
    judged = settings.evaluation
    try:
        sets = build.evaluation_sets(settings)
        training = build.prompt_set(settings)
        return (len(training), len(sets[0]), len(sets[-1])), training.shares
    except prompts.NotHere:
        shown = judged.num_prompts or settings.log.images
        named = [judged.prompts] if isinstance(judged.prompts, str) else judged.prompts or []
        held_out = range(shown)
        if named:
            held_out = prompts.named_or_file(named[-1])[: judged.num_prompts]
        return (0, shown, len(held_out)), ()


def _outline(settings: Config) -> Any:
    outline = getattr(plugins.load("models", settings.model.name), "outline", None)
    pipeline = outline and outline(
        settings.model.pretrained, settings.model.dtype, settings.trains_whole
    )
    with imaginary.Uncopied():
        policy = pipeline and build.policy(settings, pipeline, torch.device("cpu"))
    if policy:
        imaginary.imagine(policy.modules)
    return policy
