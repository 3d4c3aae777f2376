"""`sampler.batch_size: auto` and `trainer.micro_batch: auto`: the largest calls that fit.

What a call needs grows linearly with its rows, so that two estimates give all others: no call is
made. On a GPU a trial follows, since kernels have scratch space that no estimate knows.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import cast

import torch

from ddpo import config
from ddpo.config import Config
from ddpo.errors import UserError
from ddpo.models import Policy
from ddpo.planning import memory as needs
from ddpo.planning import plan as planning
from ddpo.planning.plan import Plan
from ddpo.prompts import Prompt

log = logging.getLogger("ddpo")

MOST = 64
"""Rows of a call. On a CPU a pair takes 0.87 of what it takes in calls of 16, and 0.97 in calls of
128, measured on the embedded model; a GPU is busy with fewer."""

SPARE = 0.9
"""The share of the free memory that is counted on: estimates are not exact, and others come."""

FEW, MORE = 2, 4
"""Rows of the calls whose memory is estimated."""


def is_open(settings: Config) -> bool:
    """Whether some size of calls is still `auto`."""
    shown = settings.evaluation.sampler
    sizes = [settings.sampler.batch_size, settings.trainer.micro_batch]
    return "auto" in [*sizes, *([shown.batch_size] if shown else [])]


def free_bytes(device: torch.device, processes: int = 1) -> float:
    """What is free on a device; of the main memory, for one of so many processes that share it."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    words = Path("/proc/meminfo").read_text().split() if Path("/proc/meminfo").is_file() else []
    free = (
        8e9
        if "MemAvailable:" not in words
        else 1024.0 * int(words[words.index("MemAvailable:") + 1])
    )
    group = [Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current")]
    if all(file.is_file() for file in group):  # a container's own limit
        limit, used = (file.read_text().strip() for file in group)
        free = free if limit == "max" else min(free, float(limit) - float(used))
    return free / processes


@dataclass(frozen=True)
class Estimate:
    """What a process needs, at any sizes of its calls."""

    plan: Plan
    few: Mapping[str, int]
    more: Mapping[str, int]
    on_gpu: bool

    def bytes(self, batch_size: int, micro_batch: int) -> float:
        rows = {"sampling": batch_size, "decoding": batch_size, "update": micro_batch}
        found = dict(self.few)
        for part, size in rows.items():
            slope = (self.more[part] - self.few[part]) / (MORE - FEW)
            found[part] = round(max(0.0, self.few[part] + slope * (size - FEW)))
        stored = needs.stored_images(self.plan, batch_size) / needs.stored_images(self.plan, FEW)
        for part in ("latents", "images"):
            found[part] = round(found[part] * stored)
        found |= needs.totals(self.plan, found)
        return found["peak"] if self.on_gpu else needs.on_cpu(found, 0.0)

    def largest(self, count: int, room: float, need: Callable[[int], float]) -> int:
        """The rows of a call, for `count` rows in all: the most that fit, in calls of one size."""
        fitting = next((n for n in range(min(MOST, count), 1, -1) if need(n) <= room), 1)
        return ceil(count / ceil(count / fitting))


def settled(settings: Config, processes: int, room: float, on_gpu: bool) -> Config:
    """The same with numbers in the place of `auto`, for `room` bytes of a device's memory.

    Raises UserError where the model's memory cannot be estimated, and for what a run would refuse.
    """
    if not is_open(settings):
        return settings
    dtype = planning.AUTO["GPU" if on_gpu else "CPU"]
    known = settings if settings.model.dtype != "auto" else config.in_precision(settings, dtype)
    plans = [
        planning.plan(_with(known, size, size, size, always=True), processes)
        for size in (FEW, MORE)
    ]
    if plans[0].policy is None:
        raise UserError(
            f"trainer.micro_batch: auto, but what {settings.model.pretrained} needs is not known "
            "without its files; give a number, and sampler.batch_size another"
        )
    few, more = (needs.footprint(plan) for plan in plans)
    estimate, plan, own = Estimate(plans[0], few, more, on_gpu), plans[0], settings.sampler
    room = SPARE * room
    images = estimate.largest(needs.share_of(plan), room, lambda n: estimate.bytes(n, 1))
    given = images if own.batch_size == "auto" else own.batch_size
    groups = ceil(plan.sizes.groups_per_update / processes)
    pairs = groups * plan.samples * plan.steps[2]
    micro = estimate.largest(pairs, room, lambda n: estimate.bytes(given, n))
    if plan.collects:  # the rule of trainer.while_sampling, which the estimate took to hold
        images = min(images, micro)
    shown, twice = settings.evaluation.sampler, 1
    if shown and shown.guidance_scale != 1 and own.guidance_scale == 1:
        twice = 2  # rows of the network for each picture
    found = _with(settings, images, micro, max(1, images // twice))
    least = estimate.bytes(1, 1)
    if least > room:
        log.warning(
            "even calls of one image and one pair are estimated to need %.3g GB, and %.3g GB are "
            "free; model.gradient_checkpointing and model.offload need less",
            least / 1e9,
            room / SPARE / 1e9,
        )
    return found


def _with(settings: Config, images: int, micro: int, shown: int, always: bool = False) -> Config:
    """Numbers in the place of `auto`; `always`: of other numbers, too."""

    def number(given: object, found: int) -> int:
        return found if always or given == "auto" else cast(int, given)

    own = settings.evaluation.sampler
    return config.with_calls(
        settings,
        number(settings.sampler.batch_size, images),
        number(settings.trainer.micro_batch, micro),
        number(own.batch_size, shown) if own else shown,
    )


def tried(policy: Policy, settings: Config, grad: bool) -> tuple[int, int]:
    """The images and the pairs of a call that memory has room for, from those of `settings` down.

    Each is halved until a call does not run out of it. `grad`: a rollout has a graph, too.
    """
    own = settings.objective.guidance_scale
    sampling = settings.sampler.guidance_scale
    update = sampling if own is None else own
    batch_size, micro_batch = cast(int, settings.sampler.batch_size), settings.trainer.micro_batch
    images = _halved(batch_size, lambda n: _call(policy, n, sampling, grad, decode=True))
    pairs = _halved(cast(int, micro_batch), lambda n: _call(policy, n, update, True, decode=False))
    return images, pairs


def _halved(size: int, call: Callable[[int], None]) -> int:
    while True:
        try:
            call(size)
            return size
        except torch.OutOfMemoryError:
            if size == 1:
                raise UserError(
                    "the memory of the device has no room for a call of one image; take "
                    "model.gradient_checkpointing, model.offload or model.quantize"
                ) from None
        size //= 2
        torch.cuda.empty_cache()


def _call(policy: Policy, rows: int, scale: float, grad: bool, decode: bool) -> None:
    """One call of the denoiser on nothing in particular, back through it, and its pictures."""
    state = torch.zeros(rows, *policy.latent_shape, dtype=policy.latent_dtype, device=policy.device)
    steps = torch.zeros(rows, dtype=torch.long, device=policy.device)
    with torch.set_grad_enabled(grad):
        condition = policy.condition([Prompt("")] * rows, None if scale == 1 else "")
        output = policy.predict(state, steps, condition, scale)
        if grad:
            output.sum().backward()
    del output
    for parameter in policy.parameters().values():
        parameter.grad = None
    if decode:
        with torch.no_grad():
            policy.decode(state)
