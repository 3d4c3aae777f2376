"""What a run will do and need: its arithmetic, its calls of the denoiser, its memory."""

from collections import Counter
from collections.abc import Iterator
from math import ceil, gcd
from typing import NamedTuple

from ddpo.evaluation.matched import block_size, measured_numbers
from ddpo.parallel import ranks
from ddpo.parallel.seeds import Purpose, generator
from ddpo.planning.plan import Plan
from ddpo.rollout.divergence import call_size
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
    images = int(settings.sampler.batch_size)
    sampling = Call("sampling", images, settings.sampler.guidance_scale != 1)
    shown = settings.evaluation.sampler or settings.sampler
    pictures = Call("pictures", int(shown.batch_size), shown.guidance_scale != 1)
    evaluation = pictures._replace(phase="evaluation")
    per_prompt, kl_pictures = (
        settings.evaluation.samples_per_prompt,
        settings.evaluation.kl_pictures,
    )
    updates = _updates(plan, iteration)
    for rank in range(plan.processes):
        groups = sizes.share(rank, plan.processes)
        chunks = ceil(len(sizes.samples(groups)) / images)
        if not settings.objective.offline:
            learning = plan.steps[2] if plan.collects else 0
            counts[sampling._replace(grad=True)] += chunks * learning
            counts[sampling] += chunks * (plan.steps[0] - learning)
            for call in _scoring(plan):
                counts[call] += chunks * plan.steps[1]
        if iteration == 0 and plan.objective.scores_steps:
            gate = updates[0][1][0]._replace(phase="ratio gate", grad=False)
            counts[gate] += ceil(plan.steps[2] / gate.rows)
        for members, each in updates[plan.collects :]:
            pairs = len(set(members) & set(groups)) * plan.samples * plan.steps[2]
            for call in each:
                counts[call] += ceil(pairs / call.rows)
        measured = kl_pairs(sizes.images, range(plan.steps[1])) if plan.steps[1] else []
        spread = sum(sizes.group(sample) in groups for sample, _ in measured)
        if spread and not settings.objective.offline:
            counts[sampling._replace(phase="kl_ref", rows=spread)] += 2
            counts[sampling._replace(phase="ratios", rows=spread)] += plan.collects
        mine = _judged(plan, rank, plan.prompts[2] * per_prompt, per_prompt)
        if settings.evaluation.every and iteration == 0:  # before it, to compare with
            counts[evaluation] += ceil(len(mine) / pictures.rows) * shown.num_steps
        if _due(settings.evaluation.every, iteration):
            counts[evaluation] += ceil(len(mine) / pictures.rows) * shown.num_steps
            kls = len(measured_numbers(plan.prompts[2], per_prompt, kl_pictures) & {*mine})
            counts += _divergences(plan, pictures, kls)
        mine = _judged(plan, rank, min(settings.log.images, plan.prompts[1]), 1)
        times = (iteration == 0) + _due(settings.log.every, iteration)
        counts[pictures] += times * ceil(len(mine) / pictures.rows) * shown.num_steps
    return +counts


def _divergences(plan: Plan, pictures: Call, count: int) -> Counter[Call]:
    """Those of so many trajectories under the base: the policy's outputs are known."""
    if not plan.judged_steps:
        return Counter()
    rows = call_size(plan.judged_steps, pictures.rows)
    call = pictures._replace(phase="kl to the base", rows=rows)
    return Counter({call: count * ceil(plan.judged_steps / rows)})


def _judged(plan: Plan, rank: int, samples: int, per_prompt: int) -> range:
    """The samples of an evaluation that a process makes: whole blocks of them."""
    shown = plan.settings.evaluation.sampler or plan.settings.sampler
    size = block_size(per_prompt, int(shown.batch_size))
    blocks = ranks.share(ceil(samples / size), rank, plan.processes)
    return range(blocks.start * size, min(blocks.stop * size, samples))


def paddings(plan: Plan) -> Iterator[Padding]:
    """Where sampling and updates compute padding. Pairs are those of the run's first iterations."""
    sizes, each = plan.sizes, plan.samples * plan.steps[2]
    owned = [set(sizes.share(rank, plan.processes)) for rank in range(plan.processes)]
    if not plan.settings.objective.offline:
        images = [len(sizes.samples(groups)) for groups in owned]
        yield from _padding("sampler.batch_size", int(plan.settings.sampler.batch_size), images)
    dealt = [
        _updates(plan, iteration)
        for iteration in range(min(plan.settings.trainer.iterations, DEALT))
    ]
    parts = [members for updates in dealt for members, _ in updates[plan.collects :]]
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
    images = int(plan.settings.sampler.batch_size)
    other_guidance = plan.guidance != plan.settings.sampler.guidance_scale
    if other_guidance or "kl_old" in plan.objective.needs:
        yield Call("scoring", images, plan.guidance != 1)
    if plan.objective.scores_steps and {"logp_ref", "kl"} & set(plan.objective.needs):
        yield Call("reference", images, plan.guidance != 1)


def _updates(plan: Plan, iteration: int) -> list[tuple[list[int], list[Call]]]:
    """For each optimizer step its groups, and the calls that each of its chunks of pairs takes.

    A coupled objective first computes its matrix; before any update its log-probabilities are
    known. A replay takes all its steps with a graph, and where they are several, each again in the
    backward pass.
    """
    sizes, objective = plan.sizes, plan.objective
    update = Call("updates", sizes.micro_batch, plan.guidance != 1, grad=True)
    steps = []
    for epoch in range(sizes.epochs):
        order = generator(Purpose.MINIBATCHES, plan.settings.seed, iteration, epoch)
        for groups in sizes.deal(order):
            known = not steps and objective.scores_steps and "kl" not in objective.needs
            passes = [update]
            if not (objective.separable or known):
                passes.append(update._replace(phase="coefficients", grad=False))
            others = {"errors_ref": "reference", "errors_old": "old policy"}
            passes += [
                call._replace(phase=phase, grad=False)
                for need, phase in others.items()
                if need in objective.needs
                for call in passes
            ]
            if replay := objective.pathwise:
                count = replay.count(plan.settings.seed, iteration, epoch)
                passes = _replayed(plan, passes, count, replay.taken(count))
            steps.append((groups, passes))
    return steps


def _replayed(plan: Plan, passes: list[Call], count: int, taken: int) -> list[Call]:
    """The calls of a replay that begins `count` steps from the end.

    The reference is asked at the steps that have a density.
    """
    update = passes[0]
    again = [update._replace(phase="recomputation")] if taken > 1 else []
    first = len(plan.dense) - count
    compared = sum(plan.dense[first : first + taken]) if "kl" in plan.objective.needs else 0
    each = [*passes, *again]
    return each * taken + [call._replace(phase="reference") for call in each] * compared


def _due(every: int, iteration: int) -> bool:
    return bool(every) and (iteration + 1) % every == 0
