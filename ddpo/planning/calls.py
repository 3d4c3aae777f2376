"""What a run will do and need: its arithmetic, its calls of the denoiser, its memory."""

from collections import Counter
from collections.abc import Iterator
from math import ceil, gcd
from typing import NamedTuple

from ddpo.parallel import ranks
from ddpo.parallel.seeds import Purpose, generator
from ddpo.planning.plan import Plan
from ddpo.training.measures import kl_pairs

DEALT = 8
"""Iterations whose minibatches are looked at for padding: on several processes their shares may
vary."""


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
    counts        what a process has to do at a time: images of an iteration, pairs of an optimizer
                  step
    share         of the computed rows, those that are padding
    better        the nearest sizes, below and above, without any
    """

    place: str
    size: int
    counts: list[int]
    share: float
    better: list[int]


def calls(plan: Plan, iteration: int) -> Counter[Call]:
    """The denoiser's calls in an iteration (from 0), on all processes together, with counts.

    Those of the trained iteration, and of the pictures and the judging that follow it.
    """
    settings, sizes, counts = plan.settings, plan.sizes, Counter[Call]()
    images = settings.sampler.batch_size
    sampling = Call("sampling", images, settings.sampler.guidance_scale != 1)
    updates = _updates(plan, iteration)
    for rank in range(plan.processes):
        groups = sizes.share(rank, plan.processes)
        chunks = ceil(len(sizes.samples(groups)) / images)
        if not settings.objective.offline:
            counts[sampling] += chunks * plan.steps[0]
            for call in _scoring(plan):
                counts[call] += chunks * plan.steps[1]
        if iteration == 0 and not plan.objective.denoising_errors:
            gate = updates[0][1][0]._replace(phase="ratio gate", grad=False)
            counts[gate] += ceil(plan.steps[2] / gate.rows)
        for members, each in updates:
            pairs = len(set(members) & set(groups)) * plan.samples * plan.steps[2]
            for call in each:
                counts[call] += ceil(pairs / call.rows)
        measured = kl_pairs(sizes.images, range(plan.steps[1])) if plan.steps[1] else []
        spread = sum(sizes.group(sample) in groups for sample, _ in measured)
        if spread and not settings.objective.offline:
            counts[sampling._replace(phase="kl_ref", rows=spread)] += 2
        if _due(settings.evaluation.every, iteration):
            judged = len(ranks.share(plan.prompts[2], rank, plan.processes))
            chunks = ceil(judged * settings.evaluation.samples_per_prompt / images)
            counts[sampling._replace(phase="evaluation")] += chunks * plan.steps[0]
        shown = len(ranks.share(min(settings.log.images, plan.prompts[1]), rank, plan.processes))
        times = (iteration == 0) + _due(settings.log.every, iteration)
        counts[sampling._replace(phase="pictures")] += times * ceil(shown / images) * plan.steps[0]
    return +counts


def paddings(plan: Plan) -> Iterator[Padding]:
    """Where sampling and updates compute padding. Pairs are those of the run's first iterations."""
    sizes, each = plan.sizes, plan.samples * plan.steps[2]
    owned = [set(sizes.share(rank, plan.processes)) for rank in range(plan.processes)]
    if not plan.settings.objective.offline:
        images = [len(sizes.samples(groups)) for groups in owned]
        yield from _padding("sampler.batch_size", plan.settings.sampler.batch_size, images)
    dealt = [
        _updates(plan, iteration)
        for iteration in range(min(plan.settings.trainer.iterations, DEALT))
    ]
    parts = [members for updates in dealt for members, _ in updates]
    pairs = [len(groups.intersection(part)) * each for part in parts for groups in owned]
    yield from _padding("trainer.micro_batch", sizes.micro_batch, pairs)


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
    """For each optimizer step its groups, and the calls that each of its chunks of pairs takes.

    A coupled objective first computes its matrix; before any update its log-probabilities are
    known.
    """
    sizes, objective = plan.sizes, plan.objective
    update = Call("updates", sizes.micro_batch, plan.guidance != 1, grad=True)
    steps = []
    for epoch in range(sizes.epochs):
        order = generator(Purpose.MINIBATCHES, plan.settings.seed, iteration, epoch)
        for groups in sizes.deal(order):
            known = not steps and not objective.denoising_errors and "kl" not in objective.needs
            passes = [update]
            if not (objective.separable or known):
                passes.append(update._replace(phase="coefficients", grad=False))
            if "errors_ref" in objective.needs:
                passes += [call._replace(phase="reference", grad=False) for call in passes]
            steps.append((groups, passes))
    return steps


def _due(every: int, iteration: int) -> bool:
    return bool(every) and (iteration + 1) % every == 0
