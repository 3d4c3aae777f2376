"""How the groups of an iteration are dealt to optimizer steps."""

import torch


def minibatches(groups: int, count: int, order: torch.Generator) -> list[list[int]]:
    """Deal groups into `count` minibatches: of each `count` consecutive groups, one to each, in random order.

    The same on any number of ranks, and even for ranks that hold contiguous blocks of groups.
    """
    dealt: list[list[int]] = [[] for _ in range(count)]
    for first in range(0, groups, count):
        places = torch.randperm(count, generator=order).tolist()
        for place, group in zip(places, range(first, groups), strict=False):
            dealt[place].append(group)
    return dealt
