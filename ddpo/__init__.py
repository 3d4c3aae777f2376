"""Reward fine-tuning of diffusion models, with the denoising chain as an MDP of exact densities.

    run = ddpo.finetune(ddpo.Config(...))
    images = ddpo.load("runs/demo").sample(["a fox"], seeds=[0])

Importing ddpo costs nothing: each name below is imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ddpo.config import Config
    from ddpo.runs.finished import Run as load
    from ddpo.runs.session import finetune

_PLACES = {"Config": "config", "finetune": "runs.session", "load": "runs.finished"}

__all__ = ["Config", "finetune", "load"]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'ddpo' has no attribute {name!r}")
    module = import_module(f"ddpo.{_PLACES[name]}")
    return module.Run if name == "load" else getattr(module, name)
