"""Random numbers as a function of what they are for, whatever rank draws them."""

from enum import IntEnum

import numpy as np
import torch


class Purpose(IntEnum):
    """First number of every key, so that no two uses share a stream."""

    NOISE, PROMPTS, MINIBATCHES, GLOBAL, EVALUATION, DENOISING, TIMESTEPS, START = range(1, 9)
    VARIATIONS = 9


def generator(*key: int) -> torch.Generator:
    """A CPU generator that is a function of its key, on any number of ranks and after a resume."""
    seed = np.random.SeedSequence(key).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(seed))
