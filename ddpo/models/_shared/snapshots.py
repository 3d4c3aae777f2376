"""Whose weights are in force: the trained parameters, for a while, with other values in them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ddpo.errors import UserError, nearest

Snapshots = dict[str, Mapping[str, Tensor]]
"""A name, as "average" or "000020" -> the values of all trained parameters, by their names."""

TASTE_VALUES = "to_v_ip"
"""In the names of the projections that make values of a taste."""


@contextmanager
def swapped(
    parameters: Mapping[str, nn.Parameter], snapshots: Snapshots, name: str
) -> Iterator[None]:
    """Within it the parameters hold the values of that name; afterwards their own again.

    Nothing is copied. Raises UserError where nothing has that name.
    """
    if name not in snapshots:
        raise UserError(f"no weights are called {name!r}{nearest(name, snapshots)}")
    own = {key: parameter.data for key, parameter in parameters.items()}
    try:
        for key, parameter in parameters.items():
            parameter.data = snapshots[name][key]
        yield
    finally:
        for key, parameter in parameters.items():
            parameter.data = own[key]


def scaled(
    values: Mapping[str, Tensor],
    base: Mapping[str, Tensor] | None,
    scale: float,
    taste_scale: float = 1.0,
) -> dict[str, Tensor]:
    """Trained weights part of the way from the base (0) to where they are (1).

    An adapter adds scale * B A to a weight, so B alone is scaled, and of the layers for a taste the
    value projections W'_v, those by scale * taste_scale; weights without an adapter are
    interpolated with those of the `base`.
    """
    if base is not None:
        return {name: torch.lerp(base[name], value, scale) for name, value in values.items()}
    scales = {"lora_B": scale, TASTE_VALUES: scale * taste_scale}
    return {
        name: value * next((scales[part] for part in scales if part in name), 1.0)
        for name, value in values.items()
    }
