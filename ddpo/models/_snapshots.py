"""Whose weights are in force: the trained parameters, for a while, with other values in them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

from ddpo.errors import UserError, nearest

Snapshots = dict[str, Mapping[str, Tensor]]
"""A name, as "average" or "000020" -> the values of all trained parameters, by their names."""


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
