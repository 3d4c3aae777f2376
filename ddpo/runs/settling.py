"""What `auto` comes to on this machine, the same on all ranks: config.yaml keeps it."""

import logging
import os
from typing import cast

import torch

from ddpo import config
from ddpo.building import build
from ddpo.config import Config
from ddpo.models._precision import Precision
from ddpo.parallel import ranks
from ddpo.planning import fitting, flops
from ddpo.planning import plan as planning
from ddpo.training.halving import IMAGES, PAIRS
from ddpo.training.trainer import Trainer

log = logging.getLogger("ddpo")


def settled(settings: Config) -> tuple[Config, bool]:
    """Rank 0's choice for `model.dtype`, and the sizes of calls that fit by their estimate.

    With it, whether there was a size to choose.
    """
    with ranks.together():
        dtype = build.precision(settings)
    if settings.model.dtype == "auto":
        everyone: list[Precision] = ranks.gather([dtype])
        settings = config.in_precision(settings, everyone[0])
        log.info("model.dtype: auto takes %s on this machine", everyone[0])
    if settings.model.compile == "auto":
        with ranks.together():
            pays = _compiling_pays(settings)
        model = settings.model.model_copy(update={"compile": pays})
        settings = settings.model_copy(update={"model": model})
        log.info("model.compile: auto takes %s here", str(pays).lower())
    if not fitting.is_open(settings):
        return settings, False
    state = ranks.state()
    device = cast(torch.device, state.device)
    with ranks.together():
        room = fitting.free_bytes(device, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    room = min(ranks.gather([room]))
    with ranks.together():
        found = fitting.settled(settings, state.num_processes, room, device.type == "cuda")
    return found, True


LONG = 1e17
"""Floating-point operations of a process from which compiling pays: on an H200 about five minutes
at a third of what its matrix products reach; a minute is spent to gain a fifth of that."""


def _compiling_pays(settings: Config) -> bool:
    """On a GPU, in a long run whose updates score all pairs, as compiled blocks ask for."""
    if cast(torch.device, ranks.state().device).type != "cuda" or settings.parallel.shard:
        return False
    sizes = fitting.settled(settings, ranks.state().num_processes, 1e12, on_gpu=True)
    plan = planning.plan(sizes, ranks.state().num_processes)
    if plan.policy is None or plan.collects or not hasattr(plan.policy, "compile"):
        return False
    work = sum(flops.of_iteration(plan).values()) * settings.trainer.iterations
    return work / plan.processes > LONG


def tried(settings: Config, trainer: Trainer) -> Config:
    """On a GPU, the sizes with which a call of each kind did not run out of its memory.

    Not where weights are shared: there the estimate counts, since no rank can try alone.
    """
    device = trainer.policy.device
    if device.type != "cuda" or settings.parallel.shard:
        return settings
    images, pairs = fitting.tried(trainer.policy, settings, trainer.gradient_layers is not None)
    return _resized(settings, trainer, {IMAGES: images, PAIRS: pairs})


def agreed(settings: Config, trainer: Trainer, chosen: bool) -> Config:
    """The smallest sizes of all ranks."""
    if not chosen:
        return settings
    everyone = ranks.gather([(trainer.sampler.batch_size, trainer.sizes.micro_batch)])
    images, pairs = (min(sizes) for sizes in zip(*everyone, strict=True))
    found = _resized(settings, trainer, {IMAGES: images, PAIRS: pairs})
    log.info("auto takes %s on this machine", told(found))
    return found


def _resized(settings: Config, trainer: Trainer, sizes: dict[str, int]) -> Config:
    trainer.resize(sizes)
    return with_sizes(settings, trainer)


def with_sizes(settings: Config, trainer: Trainer) -> Config:
    """The settings with the sizes of calls that the trainer has."""
    images, own = trainer.sampler.batch_size, settings.evaluation.sampler
    shown = min(images, cast(int, own.batch_size)) if own else images
    if images == settings.sampler.batch_size:
        shown = cast(int, own.batch_size) if own else images
    return config.with_calls(settings, images, trainer.sizes.micro_batch, shown)


def told(settings: Config) -> str:
    """The sizes in words."""
    batch_size, micro_batch = settings.sampler.batch_size, settings.trainer.micro_batch
    return f"sampler.batch_size {batch_size}, trainer.micro_batch {micro_batch}"
