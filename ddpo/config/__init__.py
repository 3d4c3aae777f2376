"""What can be set, and how it is read: `Config` and its sections, `parse`, `load` and `dump`."""

from ddpo.config.reading import REWARDS, changed, dump, in_precision, load, of_run, parse, resolve
from ddpo.config.sections import (
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
    "Prompts", "Reward", "Sampler", "Trainer", "changed", "dump", "in_precision", "load", "of_run", "parse",
    "resolve",
]  # fmt: skip
