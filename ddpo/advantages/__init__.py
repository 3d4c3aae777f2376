"""From rewards to advantages: what a sample's reward is compared with, and in which unit.

Every function takes all rewards of an iteration (gathered over ranks, so that each rank computes the same),
with NaN where a sample has no value, and returns advantages with NaN at the same places: such samples take no
part.
"""

from ddpo.advantages.batch import Batch
from ddpo.advantages.contract import EPSILON, Advantage, Stateless
from ddpo.advantages.group import Group
from ddpo.advantages.per_prompt import PerPrompt

__all__ = ["ADVANTAGES", "EPSILON", "Advantage", "Batch", "Group", "PerPrompt", "Stateless"]

ADVANTAGES: dict[str, type] = {"batch": Batch, "per_prompt": PerPrompt, "group": Group}
