"""The parts of benchmarks/gpu.py: each yields (name, numbers) as soon as something is measured."""

import argparse
import importlib
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, cast
from unittest.mock import patch

import torch
from diffusers import StableDiffusionPipeline  # pyright: ignore[reportPrivateImportUsage]
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from gpu_model import ARITHMETIC, Case, pipeline, use
from gpu_tools import (
    copy_tb_per_s,
    counted_flops,
    matmul_tflops,
    peak_memory,
    seconds,
    synchronisations,
)

from ddpo import config
from ddpo.errors import Stopped
from ddpo.models import DTYPES
from ddpo.parallel import ranks
from ddpo.planning import memory as needs
from ddpo.planning import plan as planning
from ddpo.rollout.sample import Sampler
from ddpo.rollout.trajectory import Trajectory
from ddpo.runs import build
from ddpo.training.gates import first_pass_deviation, gate_limit
from ddpo.training.update import Pass, clip_gradients

Found = Iterator[tuple[str, dict[str, Any]]]
GUIDED = 2
"""Network rows for each image or pair."""


@dataclass(frozen=True)
class Sizes:
    """How much is done. Sampling is timed at two numbers of steps; what differs is the time of the
    steps."""

    matmul: int = 8192
    copied: int = 2**32
    few: int = 2
    many: int = 8
    whole: int = 50
    columns: int = 8
    images: int = 8
    sampling: tuple[int, ...] = (1, 8, 16, 32)
    micro: tuple[int, ...] = (1, 4, 8, 16, 32)
    repeats: int = 2
    iterations: int = 5
    demo_images: int = 32
    dtypes: tuple[str, ...] = ("bf16", "fp16", "fp32", "tf32")


TINY = Sizes(
    matmul=128,
    copied=2**16,
    few=1,
    many=2,
    whole=4,
    columns=2,
    images=2,
    sampling=(2,),
    micro=(1, 2),
    repeats=1,
    iterations=1,
    demo_images=1,
    dtypes=("fp32",),
)


@dataclass
class Bench:
    """What every part has at hand; `peaks` are TFLOP/s of a matrix product, by arithmetic."""

    sizes: Sizes
    case: Case
    peaks: dict[str, float]
    folder: str | None = None

    def rate(self, flops: float, taken: float) -> dict[str, float | None]:
        """TFLOP/s, and which part that is of a large matrix product's in this arithmetic."""
        peak = self.peaks.get(self.case.arithmetic)
        return {"tflops": flops / taken / 1e12, "mfu": peak and flops / taken / 1e12 / peak}


def peak(bench: Bench) -> Found:
    """What the machine can do: a large matrix product in each arithmetic, and a copy."""
    device, sizes = ranks.state().device, bench.sizes
    for name in sizes.dtypes:
        use(name)
        bench.peaks[name] = matmul_tflops(DTYPES[ARITHMETIC[name]], sizes.matmul, device, 3)
        yield f"matmul_{name}", {"size": sizes.matmul, "tflops": bench.peaks[name]}
    yield "copy", {"bytes": sizes.copied, "tb_per_s": copy_tb_per_s(sizes.copied, device, 3)}


def predict(case: Case, rows: int, grad: bool = False) -> None:
    """One call of the denoiser on `rows` guided images, backwards too if asked."""
    policy = case.policy
    latents = torch.randn(rows, *policy.latent_shape, device=policy.device)
    timesteps = torch.full((rows,), 500, device=policy.device)
    with torch.set_grad_enabled(grad):
        output = policy.predict(latents, timesteps, policy.condition(case.prompts(rows), ""), 5.0)
    if grad:
        output.square().mean().backward()
        case.forget_gradients()


def sampling(bench: Bench) -> Found:
    """Images a second with log-probabilities, decoded: measured at few and many steps, and at all
    of them."""
    case, sizes = bench.case, bench.sizes
    forward = counted_flops(lambda: predict(case, 1))
    with torch.no_grad():
        decode = counted_flops(
            lambda: case.policy.decode(torch.zeros(1, *case.policy.latent_shape).to(case.device))
        )
    yield "flops", {"forward_guided": forward, "decode": decode}
    for images in sizes.sampling:
        few, many = (case.sampler(steps=n, batch_size=images) for n in (sizes.few, sizes.many))
        short = seconds(partial(case.rollout, few, images), case.device, sizes.repeats)
        with peak_memory(case.device) as memory:
            long = seconds(
                partial(case.rollout, many, images), case.device, sizes.repeats, warm=True
            )
        step = (long - short) / (sizes.many - sizes.few)
        fixed = short - sizes.few * step
        yield (
            f"batch_{images}",
            {
                "images": images,
                "seconds_a_step": step,
                "seconds_besides": fixed,
                "images_per_s_at_50_steps": images / (fixed + 50 * step),
                **bench.rate(images * forward, step),
                **memory,
            },
        )
    images, sampler = sizes.images, case.sampler(steps=sizes.whole, batch_size=sizes.images)
    taken = seconds(lambda: case.rollout(sampler, images), case.device, 1, warm=True)
    total = images * (sizes.whole * forward + decode)
    yield (
        "whole",
        {
            "images": images,
            "steps": sizes.whole,
            "seconds": taken,
            "images_per_s": images / taken,
            **bench.rate(total, taken),
        },
    )


def training(bench: Bench) -> Found:
    """(sample, step) pairs a second, and the ratios of the first pass after a rollout."""
    case, sizes = bench.case, bench.sizes
    sampler = case.sampler(steps=sizes.whole, batch_size=sizes.images)
    trajectory = case.rollout(sampler, sizes.images)
    latents = trajectory.latents[:, -1]
    yield (
        "rollout",
        {"steps": sizes.whole, "chunk": sizes.images, "final_latents_std": latents.std().item()},
    )
    yield "optimizer", {"seconds": optimizer_seconds(bench)}
    both = counted_flops(lambda: predict(case, 1, grad=True))
    yield "flops", {"forward_and_backward_guided": both}
    last = sizes.whole - 1
    columns = sorted({round(last * i / (sizes.columns - 1)) for i in range(sizes.columns)})
    for micro in sizes.micro:
        work = case.work(sampler, trajectory, micro, columns)
        yield f"ratio_{micro}", ratios(work, sampler, trajectory)
        samples = list(range(min(sizes.images, micro)))
        pairs = len(samples) * len(columns)
        with peak_memory(case.device) as memory:
            taken = seconds(partial(work.backward, samples), case.device, sizes.repeats, warm=True)
        calls = -(-pairs // micro)
        yield (
            f"micro_{micro}",
            {
                "micro_batch": micro,
                "pairs": pairs,
                "calls": calls,
                "seconds": taken,
                "pairs_per_s": calls * micro / taken,
                "images_per_s_at_50_steps": calls * micro / taken / 50,
                **bench.rate(calls * micro * both, taken),
                **memory,
            },
        )


def ratios(work: Pass, sampler: Sampler, trajectory: Trajectory) -> dict[str, Any]:
    """|ratio - 1| before any update: what the gate sees, its limit, and all pairs of an update."""
    policy = work.terms.policy
    limit = gate_limit(work.objective.ratio_bound, policy.half_precision)
    found = first_pass_deviation(work)
    loss = work.backward(range(len(trajectory.samples)))
    measured = {name.replace("/", "_"): value for name, value in work.measured.result().items()}
    columns = torch.tensor(work.terms.columns(work.batch), device=policy.device)
    with torch.no_grad():  # where in the trajectory it is largest
        by_step = [
            (
                work.terms(torch.zeros_like(columns[:1]), column[None])["logp"]
                - trajectory.logp_old[0, column]
            )
            for column in columns
        ]
    return {
        "chunk": sampler.batch_size,
        "micro_batch": work.micro_batch,
        "same_shape": sampler.batch_size == work.micro_batch,
        "gate_max_dev": found,
        "gate_limit": limit,
        "gate_margin": limit / found if found else None,
        "gate_holds": found <= limit,
        "loss": loss,
        **measured,
        "columns": columns.tolist(),
        "std_by_column": sampler.steps.std[columns].tolist(),
        "log_ratio_by_column_alone": [value.item() for value in by_step],
    }


def optimizer_seconds(bench: Bench) -> float:
    """What follows the backward passes: clipping and AdamW's step."""
    parameters = list(bench.case.policy.parameters().values())
    before = [parameter.detach().clone() for parameter in parameters]
    optimizer = torch.optim.AdamW(parameters, 1e-6)

    def step() -> None:
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        clip_gradients(parameters, 1.0)
        optimizer.step()

    taken = seconds(step, bench.case.device, bench.sizes.repeats)
    for parameter, old in zip(parameters, before, strict=True):
        parameter.data = old
    bench.case.forget_gradients()
    return taken


def waits(bench: Bench) -> Found:
    """Host synchronisations of a sampling step and of a training micro-batch, by the line of
    code."""
    case, sizes = bench.case, bench.sizes
    if case.device.type != "cuda":
        yield "left_out", {"why": "only CUDA tells of synchronisations"}
        return
    few, many = (case.sampler(steps=n, batch_size=sizes.images) for n in (sizes.few, sizes.many))
    trajectory = case.rollout(many, sizes.images)
    counts = [synchronisations(lambda s=s: case.rollout(s, sizes.images)) for s in (few, many)]
    yield "sampling", _grown(counts, sizes.many - sizes.few, "step")
    micro = sizes.images
    works = [case.work(many, trajectory, micro, range(n)) for n in (sizes.few, sizes.many)]
    everyone = list(range(sizes.images))
    counts = [synchronisations(lambda w=w: w.backward(everyone)) for w in works]
    yield "training", _grown(counts, sizes.many - sizes.few, "micro_batch")
    case.forget_gradients()


def _grown(counts: list[Any], difference: int, unit: str) -> dict[str, Any]:
    few, many = counts
    lines = {place: [few[place], many[place]] for place in many | few}
    return {
        f"a_{unit}": (many.total() - few.total()) / difference,
        "all": many.total(),
        "lines": lines,
    }


def attention(bench: Bench) -> Found:
    """The fused attention beside the plain one, forward and forward with backward."""
    case, sizes = bench.case, bench.sizes
    unet = cast(Any, case.policy).unet
    default = unet.attn_processors
    for name, processor in {"fused": AttnProcessor2_0(), "plain": AttnProcessor()}.items():
        unet.set_attn_processor(processor)
        for grad in (False, True):
            rows = sizes.images // 2 if grad else sizes.images
            with peak_memory(case.device) as memory:
                taken = seconds(lambda r=rows, g=grad: predict(case, r, g), case.device, 3)
            both = "_and_backward" if grad else ""
            yield f"{name}_forward{both}", {"rows": rows, "seconds": taken, **memory}
    unet.set_attn_processor(default)


def layout(bench: Bench) -> Found:
    """The same calls with channels_last weights, and with compiled blocks."""
    case, sizes = bench.case, bench.sizes
    unet = cast(Any, case.policy).unet
    rows = sizes.images
    compiles = case.device.type == "cuda"
    for name in ("as_it_is", "channels_last", "compiled")[: 2 + compiles]:
        if name == "channels_last":
            unet.to(memory_format=torch.channels_last)
        elif name == "compiled":
            unet.compile_repeated_blocks()
        for grad in (False, True):
            started = time.perf_counter()
            predict(case, rows, grad)
            first = time.perf_counter() - started
            taken = seconds(lambda g=grad: predict(case, rows, g), case.device, 3)
            both = "_and_backward" if grad else ""
            yield f"{name}_forward{both}", {"rows": rows, "first_seconds": first, "seconds": taken}


def plan(bench: Bench) -> Found:
    """What `ddpo plan` estimates for the sizes of sampling and training. It needs no GPU."""
    sizes = bench.sizes
    for batch, micro in zip(sizes.sampling[-2:], sizes.micro[-2:], strict=False):
        wanted = bench.case.settings(
            images=batch, steps=sizes.many, batch_size=batch, micro_batch=micro
        )
        planned = planning.plan(wanted)
        if planned.policy is None:
            yield "left_out", {"why": "ddpo plan does not know this architecture"}
            return
        found = {f"{name}_gb": count / 1e9 for name, count in needs.footprint(planned).items()}
        yield f"batch_{batch}_micro_{micro}", {"batch_size": batch, "micro_batch": micro, **found}


def demo(bench: Bench) -> Found:
    """Seconds an iteration of the embedded model's demonstration, and its gate, in each
    precision."""
    sizes = bench.sizes
    for dtype in sizes.dtypes:
        use(dtype)
        wanted = config.load("demo")
        wanted.model.dtype = cast(Any, ARITHMETIC[dtype])
        images = sizes.demo_images
        wanted.sampler.batch_size = wanted.trainer.prompts_per_iteration = images
        wanted.trainer.minibatches, wanted.trainer.micro_batch = min(2, images), 2 * images
        trainer = build.trainer(wanted)
        gate: str = "held"
        try:
            rows: list[Mapping[str, float]] = [trainer.iterate()]
        except Stopped as stop:
            gate, trainer.gated = str(stop), True
            rows = [trainer.iterate()]
        rows += [trainer.iterate() for _ in range(sizes.iterations - 1)]
        kept = ("reward/mean", "ratio/max_dev", "clip_frac", "kl_ref", "memory/peak_gb")
        times = {
            name: [row[f"time/{name}"] for row in rows] for name in ("total", "sample", "update")
        }
        yield (
            dtype,
            {
                "gate": gate,
                "seconds": times,
                "last": {name: rows[-1][name] for name in kept},
                "skipped_steps": sum(row["skipped_steps"] for row in rows),
            },
        )


def bare(bench: Bench) -> Found:
    """Ours beside a loop without a framework, in turn, at equal settings: sampling, and training on
    it."""
    if bench.folder is None:
        yield "left_out", {"why": "needs --bench, the folder of bare.py"}
        return
    sys.path.insert(0, bench.folder)
    module, case, sizes = importlib.import_module("bare"), bench.case, bench.sizes
    images, steps = sizes.images, sizes.many
    sampler = case.sampler(steps=steps, batch_size=images)
    contestants: dict[str, Any] = {"ours": partial(_our_epoch, case, sampler)}
    for options in ("", "cl"):
        arguments = argparse.Namespace(
            opts=options,
            dtype=ARITHMETIC[case.arithmetic],
            pipeline="",
            device=str(case.device),
            rank=16,
            steps=steps,
            eta=1.0,
            guidance=5.0,
            sample_batch=images,
            batches=1,
            train_batch=images,
        )
        wanted = case.settings()
        fresh = pipeline(wanted, case.device)
        with patch.object(StableDiffusionPipeline, "from_pretrained", lambda *_, f=fresh, **__: f):
            loop = module.Bare(arguments)
        contestants[f"bare[{options}]"] = partial(_bare_epoch, loop, case)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in contestants}
    for turn in range(sizes.repeats + 2):
        order = list(contestants) if turn % 2 else list(reversed(contestants))
        for name in order:
            found = contestants[name]()
            if turn:  # the first warms up
                times[name].append(found)
    for name, found in times.items():
        yield name, {"images": images, "steps": steps, "sample_s_train_s": found}


def _our_epoch(case: Case, sampler: Sampler) -> tuple[float, float]:
    """Seconds of sampling and training; without AdamW's step, which the part training times by
    itself."""
    images = sampler.batch_size
    found: list[Trajectory] = []
    sampled = seconds(
        lambda: found.append(case.rollout(sampler, images)), case.device, 1, warm=True
    )
    work = case.work(sampler, found[0], images, range(len(sampler.steps)))
    parameters = list(case.policy.parameters().values())

    def update() -> None:
        work.backward(range(images))
        clip_gradients(parameters, 1.0, work.loss_scale)

    trained = seconds(update, case.device, 1, warm=True)
    case.forget_gradients()
    return sampled, trained


def _bare_epoch(loop: Any, case: Case) -> tuple[float, float]:
    found: list[Any] = []
    sampled = seconds(lambda: found.append(loop.sample()), case.device, 1, warm=True)
    positive, latents, logps, _ = found[0]
    advantage = torch.randn(len(logps), device=case.device)
    trained = seconds(
        lambda: loop.train(positive, latents, logps, advantage), case.device, 1, warm=True
    )
    return sampled, trained


OF_MACHINE = {"peak": peak, "demo": demo}
OF_MODEL = {
    "sampling": sampling,
    "training": training,
    "waits": waits,
    "attention": attention,
    "bare": bare,
    "plan": plan,
    "layout": layout,
}
