"""Say what a training would do and need: batches, denoiser evaluations, memory.

Nothing is written.
"""

import sys
from collections import Counter
from collections.abc import Iterator, Sequence

import torch

from ddpo import config
from ddpo.building import build
from ddpo.commands import frame
from ddpo.config import Config
from ddpo.errors import UserError
from ddpo.planning import calibrate, fitting
from ddpo.planning import memory as needs
from ddpo.planning import plan as planning
from ddpo.planning.calls import Call, Padding, calls, paddings
from ddpo.planning.plan import Plan
from ddpo.training.measures import peak_gb

Lines = Iterator[tuple[str, str]]
SOMETIMES = ("ratio gate", "pictures", "evaluation")
"""Phases that are not part of every iteration."""
FLAGS = {"--processes": "N", "--gpu": "GB", "--calibrate": ""}
"""Those of this command alone; all others are a training's."""
NOTES = {"updates": "  forward and backward", "recomputation": "  checkpointed steps, once more"}


def main(argv: list[str]) -> None:
    """`--config FILE_OR_NAME [--section.key value ...] [--processes N] [--gpu GB]`."""
    given, rest = own_numbers(argv)
    processes, flags = (
        int(given.get("--processes", 1)),
        [" ".join(each).strip() for each in FLAGS.items()],
    )
    settings = config.parse(rest, command="ddpo plan", flags=flags)
    # of a training's process too, before it has a model
    interpreter = 1e9 * peak_gb(torch.device("cpu"))
    settings, chosen = fitted(settings, processes, given.get("--gpu"))
    plan = planning.plan(settings, processes)
    parts = needs.footprint(plan) if plan.policy else {}
    where, precision, on_cpu = many(plan.processes, "process"), settings.model.dtype, parts
    if precision == "auto":
        precision = " and ".join(
            f"{dtype} on a {device}" for device, dtype in planning.AUTO.items()
        )
        other = planning.plan(config.in_precision(settings, planning.AUTO["CPU"]), plan.processes)
        on_cpu = needs.footprint(other) if other.policy else {}
    print(
        f"{settings.run_dir}: "
        f"{plan.objective.name}, {settings.model.pretrained} in {precision}, {where}"
    )
    if chosen:
        print(chosen)
    for title, lines in {
        "An iteration": iteration(plan),
        "The run": run(plan, parts.get("training")),
        "Evaluations of the denoiser": evaluations(plan),
        "Memory of a process, estimated": memory(parts, on_cpu, interpreter),
        "Time on this machine, by a few calls": times(settings, processes),
    }.items():
        if title.startswith("Time") and "--calibrate" not in given:
            continue
        print(f"\n{title}")
        for name, text in lines:
            print(f"  {name:17} {text}")


def own_numbers(argv: Sequence[str]) -> tuple[dict[str, float], list[str]]:
    """The values of this command's flags, and all other words."""
    found: dict[str, float] = {}
    rest, words = [], iter(argv)
    for word in words:
        flag, _, text = word.partition("=")
        if flag not in FLAGS:
            rest.append(word)
            continue
        if not FLAGS[flag]:
            found[flag] = 1
            continue
        text = text or next(words, "nothing")
        whole = text.isdecimal() and int(text) >= 1
        if not whole:
            raise UserError(f"{flag}: needs a number of at least 1, got {text}")
        found[flag] = int(text)
    return found, rest


def fitted(settings: Config, processes: int, gpu_gb: float | None) -> tuple[Config, str]:
    """Numbers in the place of `auto` for sizes of calls, and a line that says which.

    They are those for a GPU with so many GB free, else for this machine.
    """
    if not fitting.is_open(settings):
        if gpu_gb:
            raise UserError(
                "--gpu: is for sizes that are auto, and neither sampler.batch_size nor "
                "trainer.micro_batch is; leave it out"
            )
        return settings, ""
    cuda = torch.cuda.is_available()
    where = "of a GPU" if gpu_gb else f"free on this machine's {'GPU' if cuda else 'memory'}"
    device = torch.device("cuda" if cuda else "cpu")
    room = 1e9 * gpu_gb if gpu_gb else fitting.free_bytes(device, 1 if cuda else processes)
    settings = fitting.settled(settings, processes, room, bool(gpu_gb) or cuda)
    images, pairs = settings.sampler.batch_size, settings.trainer.micro_batch
    line = f"sampler.batch_size {images}, trainer.micro_batch {pairs}"
    return settings, f"auto: {line}, for the {size(room)} {where}"


def many(count: float, noun: str) -> str:
    return f"{count:,} {noun}" + (
        "" if count == 1 else "es" if noun.endswith(("s", "tch")) else "s"
    )


def size(count: float) -> str:
    """Bytes, in decimal units."""
    unit, name = (1e9, "GB") if count >= 1e9 else (1e6, "MB") if count >= 1e6 else (1e3, "kB")
    return f"{count / unit:.3g} {name}"


def iteration(plan: Plan) -> Lines:
    """The identity of the batches: what is divided by what."""
    sizes, found, (steps, _, columns) = plan.sizes, rows(calls(plan, 0)), plan.steps
    prompts = sizes.prompts_per_iteration
    samples = sizes.samples_per_prompt
    groups = sizes.groups_per_update
    images, trained = sizes.images, prompts * plan.samples

    def cut(size: str, computed: int, wanted: int) -> str:
        padding = f"{1 - wanted / computed:.1%} of it" if computed > wanted else "no"
        return f"{size} a call, {padding} padding"

    yield "images", f"{many(prompts, 'prompt')} x {many(samples, 'sample')} (a group) = {images:,}"
    in_calls = cut(
        many(int(plan.settings.sampler.batch_size), "image"), found["sampling"], images * steps
    )
    offline = plan.settings.objective.offline
    yield "sampling", "none: recorded pairs" if offline else f"{many(steps, 'step')}, {in_calls}"
    kinds = {"denoising errors": "draw", "rewards": "replay"}
    each = many(columns, kinds.get(plan.objective.works_on, "trained step"))
    yield "pairs", f"{many(trained, 'image')} x {each} = {trained * columns:,}"
    passes = f"{many(sizes.minibatches, 'minibatch')} x {many(sizes.epochs, 'epoch')}"
    yield "optimizer steps", f"{passes} = {sizes.updates}"
    mine = groups * plan.samples
    shares = (many(groups, "group"), many(mine, "image"), many(mine * columns, "pair"))
    yield "each of them", " = ".join(shares)
    if plan.collects:
        yield "", "the first one's gradient is collected while images are sampled"
    if scored := sizes.updates - plan.collects:
        pairs = trained * columns * scored // sizes.minibatches
        yield "", cut(many(sizes.micro_batch, "pair"), found["updates"], pairs)
    if plan.processes > 1:
        shares = {len(sizes.share(process, plan.processes)) for process in range(plan.processes)}
        each = " or ".join(
            f"{many(n, 'group')} = {many(n * samples, 'image')}" for n in sorted(shares)
        )
        yield "each process", f"samples {each}"
    for found in paddings(plan):
        yield "padding", in_words(found, plan.processes)


def in_words(found: Padding, processes: int) -> str:
    """How much of the work it is, and the setting without it."""
    sampling = found.place == "sampler.batch_size"
    kind, work = ("image", "sampling") if sampling else ("pair", "updates")
    least, *others = found.counts
    counts = f"{least:,} to {others[-1]:,} {kind}s" if others else many(least, kind)
    who = "each process" if processes > 1 else "the process"
    does = "samples" if sampling else "scores"
    at_a_time = "" if sampling else " an optimizer step"
    better = " or ".join(f"{size:,}" for size in found.better)
    share = "less than 0.1%" if found.share < 0.001 else f"{found.share:.1%}"
    return (
        f"{who} {does} {counts}{at_a_time} in calls of {found.size:,}: "
        f"{share} of the {work} is padding; {found.place} {better} avoids it"
    )


def run(plan: Plan, checkpoint_size: float | None) -> Lines:
    """Totals, and what is written."""
    sizes = plan.sizes
    checkpoint = plan.settings.checkpoint
    iterations = plan.settings.trainer.iterations
    drawn, samples = iterations * sizes.prompts_per_iteration, sizes.samples_per_prompt
    yield "iterations", f"{iterations:,}"
    replays = plan.steps[2] * sizes.epochs if plan.objective.pathwise else 0
    again = drawn * plan.samples * replays
    with_gradient = f", {again:,} of them with a gradient" if again else ""
    yield "reward queries", many(drawn * samples + again, "image") + with_gradient
    yield "optimizer steps", f"{iterations * sizes.updates:,}"
    yield from _prompts(plan, drawn, samples)
    written = -(-iterations // checkpoint.every)
    each = f", {size(checkpoint_size)} each" if checkpoint_size else ""
    yield (
        "checkpoints",
        f"{written}, of which the last {min(checkpoint.keep_last, written)} are kept{each}",
    )


def _prompts(plan: Plan, drawn: int, samples: int) -> Lines:
    """How often each is drawn; of a mixture by sets, which share the draws by their weights."""
    if not (count := plan.prompts[0]):
        own = plan.settings.prompts
        sources = [own.dataset or own.name, *(each.dataset or each.name for each in own.sets or [])]
        names = ", ".join(filter(None, sources))
        yield "prompts", f"unknown: a data set is not here, of {names}"
        return
    whole = sum(share.weight for share in plan.shares)
    sets = [
        (f" of {share.name}", len(share.numbers), drawn * share.weight / whole)
        for share in plan.shares
    ]
    for i, (name, size, times) in enumerate(sets or [("", count, drawn)]):
        seen = times / size
        each = f"each drawn {seen:.3g} times for {seen * samples:.3g} images"
        yield "prompts" if i == 0 else "", f"{size:,}{name}, {each}"


def rows(counted: Counter[Call], in_network: bool = False) -> Counter[str]:
    """Images or pairs that go through the denoiser, by phase.

    A guided one is two rows of the network.
    """
    counts = Counter[str]()
    for call, count in counted.items():
        counts[call.phase] += call.rows * count * (2 if in_network and call.guided else 1)
    return counts


def evaluations(plan: Plan) -> Lines:
    """For each phase, images and pairs in an iteration and in the run.

    Phases of SOMETIMES are counted in the run only.
    """
    first = calls(plan, 0)
    once = Counter({call: count for call, count in first.items() if call.phase not in SOMETIMES})
    each = (calls(plan, i) for i in range(plan.settings.trainer.iterations))
    total, usual = sum(each, Counter[Call]()), rows(once)
    yield "", f"{'an iteration':>14}{'the run':>14}"
    for phase, count in rows(total).items():
        note = NOTES.get(phase, "")
        yield phase, f"{format(usual[phase], ',') if phase in usual else '':>14}{count:>14,}{note}"
    yield "all", f"{usual.total():>14,}{rows(total).total():>14,}"
    network = rows(once, True).total(), rows(total, True).total()
    guidance = (
        "two for each that is guided"
        if network[1] > rows(total).total()
        else "one each, no guidance"
    )
    yield "network rows", f"{network[0]:>14,}{network[1]:>14,}  {guidance}"


def times(settings: Config, processes: int) -> Lines:
    """Seconds of an iteration by phase, and the whole run's; evaluations and pictures apart."""
    known = config.in_precision(settings, build.precision(settings))
    found = calibrate.seconds(known, processes)
    whole = found.pop("iteration")
    for phase, taken in found.items():
        yield phase, f"{taken:.3g} s, {taken / whole:.0%} of an iteration"
    hours = whole * settings.trainer.iterations / 3600
    yield "an iteration", f"{whole:.3g} s in {known.model.dtype}"
    yield "the run", f"{hours:.3g} hours, without pictures and evaluations"


def memory(parts: dict[str, int], cpu_parts: dict[str, int], interpreter: float) -> Lines:
    """Where it goes, and the peak on a GPU and on a CPU, which may compute in another precision."""
    if not parts:
        yield (
            "unknown",
            "the model's files are not on this machine, and its sizes are not known from its name",
        )
        return
    away = f", and {size(parts['offloaded'])} offloaded" if parts["offloaded"] else ""
    yield "weights", size(parts["weights"]) + away
    yield "training", f"{size(parts['training'])}: trained weights and the optimizer's averages"
    yield (
        "trajectories",
        f"{size(parts['latents'])} of latents in fp32, {size(parts['images'])} of images",
    )
    largest = ", ".join(
        f"{name} {size(parts[name])}" for name in ("sampling", "decoding", "update")
    )
    yield "largest calls", largest
    yield (
        "peak on a GPU",
        f"{size(parts['peak'])} allocated; the driver and torch's cache take more",
    )
    cpu = needs.on_cpu(cpu_parts, interpreter)
    yield "embeddings", f"{size(parts['embeddings'])} of prompts, kept in the main memory"
    yield "peak on a CPU", f"{size(cpu)}, of which Python and its libraries {size(interpreter)}"
    yield "not counted", "the models of the rewards"


if __name__ == "__main__":
    frame.leave(frame.run(main, sys.argv[1:]))
