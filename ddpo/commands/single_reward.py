"""A reward by itself: the flags that `ddpo score`, `serve` and `check reward` share."""

import argparse
from typing import NamedTuple

from ddpo import config, plugins
from ddpo.commands import frame
from ddpo.errors import UserError

DTYPES = ("fp32", "bf16", "fp16")


class Wanted(NamedTuple):
    """A reward's configuration, and the precision of its networks."""

    reward: config.Reward
    dtype: str


def add_flags(parser: frame.Parser) -> None:
    parser.add_argument(
        "--params", type=frame.mapping, default={}, help="the reward's options as JSON"
    )
    parser.add_argument(
        "--dtype", choices=DTYPES, help="precision of the reward's networks; default: fp32"
    )


def wanted(name: str, given: argparse.Namespace) -> Wanted:
    """What the flags ask for, resolved. Raises UserError where the reward would not obey them."""
    (reward,) = config.load({"rewards": [{"name": name, "params": given.params}]}).rewards
    if given.dtype and not isinstance(plugins.load("rewards", reward.name), type):
        no = f"which has no networks to compute in {given.dtype}"
        raise UserError(f"--dtype: {name} is a function, {no}; leave it out")
    return Wanted(reward, given.dtype or "fp32")
