"""What `evaluation.sampler` leaves out is that of `sampler`."""

from collections.abc import Mapping
from typing import Any

from ddpo.config.sections import Sampler

NOT_INHERITED = ("sde_window",)
"""Belongs to training alone."""


def complete(values: dict[str, Any]) -> None:
    """Fills in `evaluation.sampler`, where there is one; options only of a sampler of that name."""
    section, training = values.get("evaluation"), values.get("sampler") or {}
    if not isinstance(section, dict) or not isinstance(training, Mapping):
        return
    own = section.get("sampler")
    if not isinstance(own, dict):
        return
    usual = Sampler.model_fields["name"].default
    name = training.get("name", usual)
    same = own.get("name", name) == name
    inherited = {
        key: value
        for key, value in training.items()
        if key not in NOT_INHERITED and (same or key in Sampler.model_fields)
    }
    section["sampler"] = {"name": name, **inherited, **own}
