"""More parts of benchmarks/gpu.py: waits, attention, layout, the plan, the demo, a bare loop."""

import argparse
import importlib
import sys
import time
from collections.abc import Mapping
from functools import partial
from typing import Any, cast
from unittest.mock import patch

import torch
from diffusers import StableDiffusionPipeline  # pyright: ignore[reportPrivateImportUsage]
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from gpu_model import ARITHMETIC, Case, pipeline, use
from gpu_parts import Bench, Found, peak, predict, sampling, training
from gpu_tools import peak_memory, seconds, synchronisations

from ddpo import config
from ddpo.building import build
from ddpo.errors import Stopped
from ddpo.planning import memory as needs
from ddpo.planning import plan as planning
from ddpo.rollout.sample import Sampler
from ddpo.rollout.trajectory import Trajectory
from ddpo.training.update import clip_gradients


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
    unet = getattr(case.policy, "unet", None)
    if unet is None:
        yield "left_out", {"why": "a transformer has attention of its own"}
        return
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
    unet = cast(Any, case.policy).network
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
    if bench.folder is None or not hasattr(bench.case.policy, "unet"):
        yield "left_out", {"why": "needs --bench, the folder of bare.py, and Stable Diffusion 1"}
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
