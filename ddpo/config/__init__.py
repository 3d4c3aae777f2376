"""What can be set, and how it is read: `Config` and its sections, `parse`, `load` and `dump`."""

from ddpo.config.reading import changed, dump, flat, in_precision, load, of_run, options, parse, read, resolve
from ddpo.config.sections import (
    REWARDS,
    Advantage,
    Checkpoint,
    Config,
    Ema,
    Evaluation,
    Log,
    Lora,
    Model,
    Objective,
    Prompts,
    Reward,
    Sampler,
    Trainer,
)

__all__ = [
    "REWARDS", "Advantage", "Checkpoint", "Config", "Ema", "Evaluation", "Log", "Lora", "Model", "Objective",
    "Prompts", "Reward", "Sampler", "Trainer", "changed", "dump",
    "flat", "in_precision", "load", "of_run", "options", "parse", "read", "resolve",
]  # fmt: skip
