"""What a run will do and need, before it does: its arithmetic, its calls of the denoiser, its memory."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import ceil, gcd
from typing import Any, Literal, NamedTuple

import torch

from ddpo import config, plugins, prompts
from ddpo.config import Config, checks
from ddpo.objectives import Objective
from ddpo.parallel import ranks
from ddpo.parallel.seeds import Purpose, generator
from ddpo.planning import memory
from ddpo.runs import build
from ddpo.training.trainer import kl_pairs
from ddpo.training.update import minibatches

HEAP = 1.4
"""On a CPU the C library's heap holds more than what is alive in it: up to 1.4 times as much, measured."""

AUTO: dict[str, Literal["bf16", "fp32"]] = {"GPU": "bf16", "CPU": "fp32"}
"""What `model.dtype: auto` most likely comes to; a plan has no device to look at."""

FIRST_CALLS = 150_000_000
"""Bytes of kernels, threads and image libraries that come with the first iteration on a CPU, measured."""


DEALT = 8
"""Iterations whose minibatches are looked at for padding: on several processes their shares may vary."""


class Call(NamedTuple):
    """One call of the denoiser: what for, with how many images or (image, step) pairs, and how.

    guided  two network rows each, not one
    """

    phase: str
    rows: int
    guided: bool
    grad: bool = False


class Padding(NamedTuple):
    """Network calls that are not full: what a process has to do is no multiple of a call's size.

    place, size   the option that says how many images or pairs a call has, and its value
    counts        what a process has to do at a time: images of an iteration, pairs of an optimizer step
    share         of the computed rows, those that are padding
    better        the nearest sizes, below and above, without any
    """

    place: str
    size: int
    counts: list[int]
    share: float
    better: list[int]


@dataclass(frozen=True)
class Plan:
    """A run, as far as its numbers depend on it.

    steps     of the sampler, those with a density, and the columns of a sample that enter a loss
    prompts   in the training set (0: a data set that is not here), in its part that is shown in pictures,
              in the set judged on the way
    policy    the model without its weights; None where its architecture is not known here
    """

    settings: Config
    objective: Objective
    processes: int
    steps: tuple[int, int, int]
    prompts: tuple[int, int, int]
    policy: Any = None

    @property
    def samples(self) -> int:
        """Of a prompt, those that are trained on."""
        every, extremes = self.settings.trainer.samples_per_prompt, self.settings.advantage.keep_extremes
        return every if extremes is None else min(every, 2 * extremes)

    @property
    def guidance(self) -> float:
        """Of the steps that are scored, which may be another than that of sampling."""
        own = self.settings.objective.guidance_scale
        return self.settings.sampler.guidance_scale if own is None else own


def plan(settings: Config, processes: int = 1) -> Plan:
    """Raises UserError for what a run of that many processes would refuse."""
    checks.check(settings, processes)
    if settings.model.dtype == "auto":
        settings = config.in_precision(settings, AUTO["GPU"])
    objective, count, policy = build.objective(settings), settings.sampler.num_steps, _outline(settings)
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
        held_out = prompts.load(judged.prompts)[: judged.num_prompts] if judged.prompts else range(shown)
        return 0, shown, len(held_out)


def _outline(settings: Config) -> Any:
    outline = getattr(plugins.load("models", settings.model.name), "outline", None)
    pipeline = outline and outline(settings.model.pretrained, settings.model.dtype, settings.lora is None)
    return pipeline and build.policy(settings, pipeline, torch.device("cpu"))


def calls(plan: Plan, iteration: int) -> Counter[Call]:
    """The denoiser's calls in an iteration (from 0) on all processes together, and how many of each.

    Those of the trained iteration, and of the pictures and the judging that follow it.
    """
    settings, trainer, found = plan.settings, plan.settings.trainer, Counter[Call]()
    drawn, images = trainer.prompts_per_iteration, settings.sampler.batch_size
    sampling = Call("sampling", images, settings.sampler.guidance_scale != 1)
    updates = _updates(plan, iteration)
    for rank in range(plan.processes):
        groups = ranks.share(drawn, rank, plan.processes)
        chunks = ceil(len(groups) * trainer.samples_per_prompt / images)
        if not settings.objective.offline:
            found[sampling] += chunks * plan.steps[0]
            for call in _scoring(plan):
                found[call] += chunks * plan.steps[1]
        if iteration == 0 and not plan.objective.denoising_errors:
            gate = updates[0][1][0]._replace(phase="ratio gate", grad=False)
            found[gate] += ceil(plan.steps[2] / gate.rows)
        for members, each in updates:
            pairs = len(set(members) & set(groups)) * plan.samples * plan.steps[2]
            for call in each:
                found[call] += ceil(pairs / call.rows)
        measured = kl_pairs(drawn * trainer.samples_per_prompt, range(plan.steps[1])) if plan.steps[1] else []
        spread = sum(sample // trainer.samples_per_prompt in groups for sample, _ in measured)
        if spread and not settings.objective.offline:
            found[sampling._replace(phase="kl_ref", rows=spread)] += 2
        if _due(settings.evaluation.every, iteration):
            judged = len(ranks.share(plan.prompts[2], rank, plan.processes))
            chunks = ceil(judged * settings.evaluation.samples_per_prompt / images)
            found[sampling._replace(phase="evaluation")] += chunks * plan.steps[0]
        shown = len(ranks.share(min(settings.log.images, plan.prompts[1]), rank, plan.processes))
        times = (iteration == 0) + _due(settings.log.every, iteration)
        found[sampling._replace(phase="pictures")] += times * ceil(shown / images) * plan.steps[0]
    return +found


def paddings(plan: Plan) -> Iterator[Padding]:
    """Where sampling and updates compute padding. Pairs are those of the run's first iterations."""
    trainer = plan.settings.trainer
    drawn, each = trainer.prompts_per_iteration, plan.samples * plan.steps[2]
    owned = [set(ranks.share(drawn, rank, plan.processes)) for rank in range(plan.processes)]
    if not plan.settings.objective.offline:
        images = [len(groups) * trainer.samples_per_prompt for groups in owned]
        yield from _padding("sampler.batch_size", plan.settings.sampler.batch_size, images)
    dealt = [_updates(plan, iteration) for iteration in range(min(trainer.iterations, DEALT))]
    parts = [members for updates in dealt for members, _ in updates]
    pairs = [len(groups.intersection(part)) * each for part in parts for groups in owned]
    yield from _padding("trainer.micro_batch", trainer.micro_batch, pairs)


def _padding(place: str, size: int, counts: list[int]) -> Iterator[Padding]:
    computed, common = sum(ceil(count / size) * size for count in counts), gcd(*counts)
    if computed > sum(counts):
        without = [n for n in range(1, common + 1) if common % n == 0]
        better = [n for n in without if n < size][-1:] + [n for n in without if n > size][:1]
        share = 1 - sum(counts) / computed
        yield Padding(place, size, sorted(set(counts) - {0}), share, better)


def _scoring(plan: Plan) -> Iterator[Call]:
    """What follows each chunk's sampling, step by step: another guidance, the reference."""
    images = plan.settings.sampler.batch_size
    if plan.guidance != plan.settings.sampler.guidance_scale:
        yield Call("scoring", images, plan.guidance != 1)
    if {"logp_ref", "kl"} & set(plan.objective.needs):
        yield Call("reference", images, plan.guidance != 1)


def _updates(plan: Plan, iteration: int) -> list[tuple[list[int], list[Call]]]:
    """For each optimiser step its groups, and the calls that each of its chunks of pairs takes.

    A coupled objective first computes its matrix; before any update its log-probabilities are known.
    """
    trainer, objective = plan.settings.trainer, plan.objective
    update = Call("updates", trainer.micro_batch, plan.guidance != 1, grad=True)
    found = []
    for epoch in range(trainer.epochs):
        order = generator(Purpose.MINIBATCHES, plan.settings.seed, iteration, epoch)
        for groups in minibatches(trainer.prompts_per_iteration, trainer.minibatches, order):
            known = not found and not objective.denoising_errors and "kl" not in objective.needs
            passes = [update]
            if not (objective.separable or known):
                passes.append(update._replace(phase="coefficients", grad=False))
            if "errors_ref" in objective.needs:
                passes += [call._replace(phase="reference", grad=False) for call in passes]
            found.append((groups, passes))
    return found


def _due(every: int, iteration: int) -> bool:
    return bool(every) and (iteration + 1) % every == 0


def footprint(plan: Plan) -> dict[str, int]:
    """Bytes that a process needs besides the interpreter and its libraries; the largest share of one counts.

    weights, training       frozen weights; trained ones with AdamW's two averages, and the EMA's
    latents, images         what the sampled chunks leave behind; with a KL, the reference's means too
    sampling, decoding, update      the peak within a call of each kind; an update's has the gradients
    working, peak           the most of the last five at one time, and all together
    """
    policy, settings = plan.policy, plan.settings
    trainer, whole, chunk = settings.trainer, settings.lora is None, settings.sampler.batch_size
    trained = sum(parameter.nbytes for parameter in policy.parameters().values())
    modules = (policy.unet, policy.text_encoder, policy.vae)
    frozen = sum(parameter.nbytes for module in modules for parameter in module.parameters()) - trained
    share = ceil(trainer.prompts_per_iteration / plan.processes) * trainer.samples_per_prompt
    stored, kept = ceil(share / chunk) * chunk, plan.steps[0] * (1 + ("kl" in plan.objective.needs)) + 1

    def noise(rows: int) -> torch.Tensor:
        return torch.empty(rows, *policy.latent_shape)

    def call(rows: int, grad: bool) -> None:
        pairs = plan.samples * plan.steps[2]
        texts = [str(i // pairs) if policy.train_text_encoder else "" for i in range(rows)]
        timesteps, scale = torch.zeros(rows, dtype=torch.long), settings.sampler.guidance_scale
        scale = plan.guidance if grad else scale
        with torch.set_grad_enabled(grad):
            output = policy.predict(noise(rows), timesteps, texts, scale)
            if grad and "errors_ref" in plan.objective.needs:
                with torch.no_grad():
                    policy.predict(noise(rows), timesteps, texts, scale)
        if grad:
            output.sum().backward()

    with memory.imaginary:
        a_latent, an_image = noise(1).nbytes, policy.decode(noise(1)).nbytes
    found = {
        "weights": frozen + trained * whole,
        "training": trained * (3 + bool(settings.ema.decay)),
        "latents": stored * kept * a_latent,
        "images": stored * an_image,
        "sampling": memory.peak_bytes(lambda: call(chunk, False)),
        "decoding": memory.peak_bytes(lambda: policy.decode(noise(chunk))),
        "update": memory.peak_bytes(lambda: call(trainer.micro_batch, True)),
    }
    sampled = found["images"] + max(found["sampling"], found["decoding"], found["latents"])  # joined: twice
    found["working"] = found["latents"] + max(sampled, found["update"])
    return {**found, "peak": found["weights"] + found["training"] + found["working"]}


def on_cpu(footprint: Mapping[str, int], interpreter: float) -> float:
    """Peak resident bytes of a process on a CPU, given what it takes before a model is there."""
    return interpreter + FIRST_CALLS + footprint["peak"] + (HEAP - 1) * footprint["working"]
