"""Where the time of an iteration goes: `ddpo train --profile`.

The second iteration of the process (its only one, where no more are left) is measured: seconds by
phase, floating-point operations a second and which part that is of what this machine reaches at
best, and a trace that chrome://tracing and ui.perfetto.dev open.
"""

import json
import logging
import time
from collections.abc import Callable
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch.profiler import ProfilerActivity, record_function
from torch.profiler import profile as tracing

from ddpo.config import Config
from ddpo.models import DTYPES
from ddpo.parallel import ranks
from ddpo.planning import flops
from ddpo.planning import plan as planning
from ddpo.records.files import whole
from ddpo.training.measures import Metrics
from ddpo.training.trainer import Trainer

log = logging.getLogger("ddpo")

MATRIX = {"cuda": 8192, "cpu": 1024}
"""Rows and columns of the matrices whose product shows what a device can do."""

CHANNELS = 128
"""In and out of the convolution that does so."""

UPDATES = ("updates", "coefficients", "reference", "old policy", "recomputation")
"""The phases of a plan's calls that an update makes."""


class Spans:
    """Seconds within named functions, and a mark for each in the trace."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def measured(*args: Any, **options: Any) -> Any:
            started = self._now()
            with record_function(f"ddpo: {name}"):
                found = function(*args, **options)
            self.seconds[name] = self.seconds.get(name, 0.0) + self._now() - started
            return found

        return measured

    def _now(self) -> float:
        """When the device has done all that it was asked for."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def attach(trainer: Trainer, settings: Config, folder: Path) -> None:
    """Profile one of the iterations that this trainer will do."""
    iterate, numbers = trainer.iterate, count()
    left = settings.trainer.iterations - trainer.iteration

    def watched() -> Metrics:
        if next(numbers) != min(1, left - 1):
            return iterate()
        return _profiled(trainer, iterate, settings, folder)

    trainer.iterate = watched


def _profiled(
    trainer: Trainer, iterate: Callable[[], Metrics], settings: Config, folder: Path
) -> Metrics:
    device = trainer.policy.device
    spans = Spans(device)
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    places: list[tuple[str, Any, str]] = [
        ("sampling", trainer, "rollout"),
        ("decoding", trainer.policy, "decode"),
        ("waiting", trainer.scorer, "collect"),
        ("update", trainer, "update"),
    ]
    with ExitStack() as stack:
        for name, owner, attribute in places:
            around = spans.around(name, getattr(owner, attribute))
            stack.enter_context(patch.object(owner, attribute, around))
        trace = stack.enter_context(tracing(activities=activities))
        row = spans.around("iteration", iterate)()
    seconds = parts(spans.seconds)
    if ranks.state().is_main_process:
        with whole(folder / "profile") as aside:
            aside.mkdir()
            trace.export_chrome_trace(str(aside / "trace.json.gz"))
            table = rated(seconds, settings, trainer)
            (aside / "summary.json").write_text(json.dumps(table, indent=1))
        for line in lines(table):
            log.info("%s", line)
        log.info("%s holds the table and a trace for ui.perfetto.dev", folder / "profile")
    return row


def parts(spans: dict[str, float]) -> dict[str, float]:
    """Seconds that add up to those of the iteration: what a phase holds of another is taken off."""
    inside = ("decoding", "waiting")
    found = {name: spans.get(name, 0.0) for name in ("sampling", *inside, "update")}
    found["sampling"] -= sum(found[name] for name in inside)
    found["other"] = spans["iteration"] - sum(found.values())
    return {**found, "iteration": spans["iteration"]}


def rated(seconds: dict[str, float], settings: Config, trainer: Trainer) -> dict[str, Any]:
    """By phase: seconds, their share, and where operations are counted TFLOP, TFLOP/s and MFU.

    Operations are a process's share of the plan's.
    """
    processes, device = ranks.state().num_processes, trainer.policy.device
    plan = planning.plan(settings, processes)
    found = flops.of_iteration(plan, trainer.iteration) if plan.policy else {}
    work = {
        "sampling": found.get("sampling", 0) + found.get("scoring", 0),
        "decoding": found.get("decoding", 0),
        "update": sum(found.get(phase, 0) for phase in UPDATES),
    }
    work["iteration"] = sum(work.values())
    peak = peak_flops(device, DTYPES[settings.model.dtype])
    table: dict[str, Any] = {"peak_tflops_per_s": peak / 1e12, "phases": {}}
    for name, taken in seconds.items():
        row: dict[str, float] = {"seconds": taken, "share": taken / seconds["iteration"]}
        if operations := work.get(name, 0) / processes:
            rate = operations / taken
            row |= {"tflop": operations / 1e12, "tflops_per_s": rate / 1e12, "mfu": rate / peak}
        table["phases"][name] = row
    return table


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a large matrix product or convolution, whichever has more of them.

    On a CPU they come from different libraries, of which one may know less of the processor.
    """
    size = MATRIX.get(device.type, MATRIX["cpu"])
    square = torch.randn(2, size, size, device=device, dtype=dtype)
    images = torch.randn(8, CHANNELS, 64, 64, device=device, dtype=dtype)
    kernels = torch.randn(CHANNELS, CHANNELS, 3, 3, device=device, dtype=dtype)
    rates = [
        2 * size**3 / _least_seconds(lambda: square[0] @ square[1], device),
        18
        * images.numel()
        * CHANNELS
        / _least_seconds(lambda: torch.conv2d(images, kernels, padding=1), device),
    ]
    return max(rates)


def _least_seconds(compute: Callable[[], object], device: torch.device) -> float:
    """Of as many calls as fit into half a second: a core that is shared is ours for moments."""
    spans, calls = Spans(device), list[float]()
    while sum(calls) < 0.5 or len(calls) < 12:
        spans.seconds.clear()
        spans.around("call", compute)()
        calls.append(spans.seconds["call"])
    return min(calls)


def lines(table: dict[str, Any]) -> list[str]:
    """The table in words."""
    found = []
    for name, row in table["phases"].items():
        text = f"{name:10} {row['seconds']:8.3g} s {row['share']:6.1%}"
        if "mfu" in row:
            text += f" {row['tflops_per_s']:8.3g} TFLOP/s, {row['mfu']:.0%} of the best here"
        found.append(text)
    return found
