"""`model.dtype: auto`: the precision that suits a device."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import torch

from ddpo.models import Policy
from ddpo.prompts import Prompt

Precision = Literal["fp32", "bf16", "fp16"]

CLEARLY = 0.9
"""bf16 must take at most this share of fp32's time on a CPU: it costs accuracy, and timings are
noisy."""

ROWS, ROUNDS = 8, 3
"""(sample, step) pairs of the timed call, and how often each precision is timed; the quickest
counts."""


def choose(device: torch.device, build: Callable[[Precision], Policy]) -> Precision:
    """bf16 on a GPU that has it, else fp16; on a CPU fp32, or bf16 where that is clearly faster.

    `build` makes the policy in a precision; on a CPU with instructions for bf16, both are built and
    timed.
    """
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if device.type != "cpu" or not has_bf16():  # other accelerators were never tried
        return "fp32"
    seconds = timed([build("fp32"), build("bf16")])
    return "bf16" if seconds[1] < CLEARLY * seconds[0] else "fp32"


def has_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this CPU multiplies in bf16 (AVX-512 BF16, AMX, or Arm's BF16), as Linux tells it."""
    if not cpuinfo.is_file():
        return False
    words = set(cpuinfo.read_text(encoding="utf-8", errors="replace").split())
    return not words.isdisjoint({"avx512_bf16", "amx_bf16", "bf16"})


def timed(policies: Sequence[Policy]) -> list[float]:
    """For each, the seconds of a forward and backward pass.

    They take turns, so that a busy machine slows all alike.
    """
    seconds = [float("inf")] * len(policies)
    # the first is warming up, and as slow as it is, it is never the quickest
    for _ in range(1 + ROUNDS):
        for i, policy in enumerate(policies):
            begun = time.perf_counter()
            _pass(policy)
            seconds[i] = min(seconds[i], time.perf_counter() - begun)
    return seconds


def _pass(policy: Policy) -> None:
    latents = torch.zeros(
        ROWS, *policy.latent_shape, dtype=policy.latent_dtype, device=policy.device
    )
    timesteps = torch.zeros(ROWS, dtype=torch.long, device=policy.device)
    condition = policy.condition([Prompt("")] * ROWS)
    policy.predict(latents, timesteps, condition, 1.0).sum().backward()
    for parameter in policy.parameters().values():
        parameter.grad = None
