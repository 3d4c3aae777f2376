"""Say what a training would do and need: batches, denoiser evaluations, memory.

Nothing is written.
"""

import sys
from collections import Counter
from collections.abc import Iterator

import torch

from ddpo import config
from ddpo.commands import frame
from ddpo.errors import UserError
from ddpo.planning import memory as needs
from ddpo.planning import plan as planning
from ddpo.planning.calls import Call, Padding, calls, paddings
from ddpo.planning.plan import Plan
from ddpo.training.measures import peak_gb

Lines = Iterator[tuple[str, str]]
SOMETIMES = ("ratio gate", "pictures", "evaluation")
"""Phases that are not part of every iteration."""


def main(argv: list[str]) -> None:
    """`--config FILE_OR_NAME [--section.key value ...] [--processes N]`."""
    rest, processes, words = [], "1", iter(argv)
    for word in words:
        if word.partition("=")[0] == "--processes":
            processes = word.partition("=")[2] or next(words, "nothing")
        else:
            rest.append(word)
    if not processes.isdecimal() or int(processes) < 1:
        raise UserError(f"--processes: needs a number of at least 1, got {processes}")
    settings = config.parse(rest, command="ddpo plan", flags=("--processes N",))
    # of a training's process too, before it has a model
    interpreter = 1e9 * peak_gb(torch.device("cpu"))
    plan = planning.plan(settings, int(processes))
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
    for title, lines in {
        "An iteration": iteration(plan),
        "The run": run(plan, parts.get("training")),
        "Evaluations of the denoiser": evaluations(plan),
        "Memory of a process, estimated": memory(parts, on_cpu, interpreter),
    }.items():
        print(f"\n{title}")
        for name, text in lines:
            print(f"  {name:17} {text}")


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
        many(plan.settings.sampler.batch_size, "image"), found["sampling"], images * steps
    )
    offline = plan.settings.objective.offline
    yield "sampling", "none: recorded pairs" if offline else f"{many(steps, 'step')}, {in_calls}"
    each = many(columns, "draw" if plan.objective.denoising_errors else "trained step")
    yield "pairs", f"{many(trained, 'image')} x {each} = {trained * columns:,}"
    passes = f"{many(sizes.minibatches, 'minibatch')} x {many(sizes.epochs, 'epoch')}"
    yield "optimizer steps", f"{passes} = {sizes.updates}"
    mine = groups * plan.samples
    shares = (many(groups, "group"), many(mine, "image"), many(mine * columns, "pair"))
    yield "each of them", " = ".join(shares)
    pairs = trained * columns * sizes.epochs
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
    yield "reward queries", many(drawn * samples, "image")
    yield "optimizer steps", f"{iterations * sizes.updates:,}"
    count, seen = plan.prompts[0], drawn / max(plan.prompts[0], 1)
    known = f"{count:,}, each drawn {seen:.3g} times for {seen * samples:.3g} images"
    yield (
        "prompts",
        known if count else f"unknown: the data set {plan.settings.prompts.dataset} is not here",
    )
    written = -(-iterations // checkpoint.every)
    each = f", {size(checkpoint_size)} each" if checkpoint_size else ""
    yield (
        "checkpoints",
        f"{written}, of which the last {min(checkpoint.keep_last, written)} are kept{each}",
    )


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
        note = "  forward and backward" if phase == "updates" else ""
        yield phase, f"{format(usual[phase], ',') if phase in usual else '':>14}{count:>14,}{note}"
    yield "all", f"{usual.total():>14,}{rows(total).total():>14,}"
    network = rows(once, True).total(), rows(total, True).total()
    guidance = (
        "two for each that is guided"
        if network[1] > rows(total).total()
        else "one each, no guidance"
    )
    yield "network rows", f"{network[0]:>14,}{network[1]:>14,}  {guidance}"


def memory(parts: dict[str, int], cpu_parts: dict[str, int], interpreter: float) -> Lines:
    """Where it goes, and the peak on a GPU and on a CPU, which may compute in another precision."""
    if not parts:
        yield (
            "unknown",
            "the model's files are not on this machine, and its sizes are not known from its name",
        )
        return
    yield "weights", size(parts["weights"])
    yield "training", f"{size(parts['training'])}: trained weights and AdamW's averages"
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
    raise SystemExit(frame.run(main, sys.argv[1:]))
