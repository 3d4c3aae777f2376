"""The parts of benchmarks/gpu.py: each yields (name, numbers) as soon as something is measured."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from gpu_model import ARITHMETIC, Case, use
from gpu_tools import (
    copy_tb_per_s,
    counted_flops,
    matmul_tflops,
    peak_memory,
    seconds,
)

from ddpo.models import DTYPES
from ddpo.parallel import ranks
from ddpo.rollout.sample import Sampler
from ddpo.rollout.trajectory import Trajectory
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
