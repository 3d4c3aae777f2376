"""How benchmarks/gpu.py measures: seconds, peak memory, floating-point operations, host
synchronisations."""

import platform
import statistics
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

import ddpo

LIBRARIES = ("torch", "diffusers", "transformers", "accelerate", "peft", "numpy")
PACKAGE = str(Path(ddpo.__file__).parent)
LOOKED_AT = (PACKAGE, "/diffusers/", "/peft/", "/transformers/")
"""Where the line that made the host wait is looked for, the innermost first."""


def machine(device: torch.device) -> dict[str, Any]:
    """The hardware and the versions, for the head of the JSON."""
    found: dict[str, Any] = {"python": platform.python_version(), "system": platform.platform()}
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        found |= {
            "gpu": card.name,
            "gpu_gb": card.total_memory / 1e9,
            "multiprocessors": card.multi_processor_count,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return {
        **found,
        "processor": platform.processor(),
        **{name: version(name) for name in LIBRARIES},
    }


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(
    compute: Callable[[], object], device: torch.device, repeats: int, warm: bool = False
) -> float:
    """The median of `repeats` runs, after one that is not counted unless it is `warm` already."""
    if not warm:
        compute()
    times = []
    for _ in range(repeats):
        wait(device)
        started = time.perf_counter()
        compute()
        wait(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


@contextmanager
def peak_memory(device: torch.device) -> Iterator[dict[str, float | None]]:
    """GB allocated on the GPU: when it began, and at most within. None without a GPU."""
    found: dict[str, float | None] = {"before_gb": None, "peak_gb": None}
    if device.type == "cuda":
        wait(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        found["before_gb"] = torch.cuda.memory_allocated(device) / 1e9
    yield found
    if device.type == "cuda":
        wait(device)
        found["peak_gb"] = torch.cuda.max_memory_allocated(device) / 1e9


def counted_flops(compute: Callable[[], object]) -> int:
    """Floating-point operations of matrix products, convolutions and attention, 2 a
    multiply-add."""
    with FlopCounterMode(display=False) as counter:
        compute()
    return counter.get_total_flops()


def synchronisations(compute: Callable[[], object]) -> Counter[str]:
    """How often `compute` makes the host wait for the GPU, by the line that does so. Needs a
    GPU."""
    found: Counter[str] = Counter()

    def note(message: Warning | str, *_: Any, **__: Any) -> None:
        if "synchronizing CUDA operation" in str(message):
            found[_innermost()] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note  # catch_warnings puts the old one back
        torch.cuda.set_sync_debug_mode("warn")
        try:
            compute()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return found


def _innermost() -> str:
    """The line of our code that is running, and, where it is in there, that of a library's."""
    frames = [
        frame
        for frame in traceback.extract_stack()
        if any(part in frame.filename for part in LOOKED_AT)
    ]
    places = [
        f"{'/'.join(frame.filename.split('/')[-2:])}:{frame.lineno} {frame.line}"
        for frame in frames
    ]
    own = [place for frame, place in zip(frames, places, strict=True) if PACKAGE in frame.filename]
    return " > ".join(dict.fromkeys([*own[-1:], *places[-1:]])) or "elsewhere"


def matmul_tflops(dtype: torch.dtype, size: int, device: torch.device, repeats: int) -> float:
    """TFLOP/s of a square matrix product on random data: what this machine can do at best."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    calls = 10

    def products() -> None:
        for _ in range(calls):
            a @ b

    return 2 * size**3 * calls / seconds(products, device, repeats) / 1e12


def copy_tb_per_s(size: int, device: torch.device, repeats: int) -> float:
    """TB/s of a copy within the device's memory, bytes read and written."""
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / seconds(lambda: target.copy_(source), device, repeats) / 1e12
