"""Small convolutional networks that read a sequence: two activity oracles, one of accessibility.

    oracle_train   activity; its gradient may be trained on
    oracle_judge   activity; learned from other sequences, never trained on
    accessibility  the logit that a sequence is accessible; never saw an activity

They take letters as probabilities or one-hot rows, `(B, L, 4)`, so that gradients reach what wrote
the letters.
"""

from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from .grammar import LETTERS

FOLDER = Path(__file__).parent / "weights"
CHANNELS = {"oracle_train": 48, "oracle_judge": 48, "accessibility": 32}


class Oracle(nn.Module):
    """Words of 13 letters, pooled by 4; two residual layers; maximum and mean over places."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.words = nn.Conv1d(len(LETTERS), channels, 13, padding=6)
        self.norm = nn.BatchNorm1d(channels)
        self.near = nn.Conv1d(channels, channels, 7, padding=3)
        self.near_norm = nn.BatchNorm1d(channels)
        self.far = nn.Conv1d(channels, channels, 5, padding=2)
        self.far_norm = nn.BatchNorm1d(channels)
        self.head = nn.Sequential(nn.Linear(2 * channels, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, letters: Float[Tensor, "B L 4"]) -> Float[Tensor, " B"]:
        x = F.max_pool1d(F.relu(self.norm(self.words(letters.transpose(1, 2)))), 4)
        x = x + F.relu(self.near_norm(self.near(x)))
        x = x + F.relu(self.far_norm(self.far(x)))
        return self.head(torch.cat([x.amax(-1), x.mean(-1)], dim=-1))[:, 0]


def one_hot(tokens: Int[Tensor, "B L"]) -> Float[Tensor, "B L 4"]:
    """Letters as the oracles read them."""
    return F.one_hot(tokens, len(LETTERS)).float()


def load(name: str, folder: Path = FOLDER) -> Oracle:
    """A committed network, to be evaluated: `oracle_train`, `oracle_judge` or `accessibility`."""
    oracle = Oracle(CHANNELS[name])
    oracle.load_state_dict(load_file(folder / f"{name}.safetensors"))
    return oracle.eval().requires_grad_(False)


@torch.no_grad()
def score(oracle: Oracle, tokens: Int[Tensor, "B L"], chunk: int = 1024) -> Float[Tensor, " B"]:
    """What the network says of each sequence: log2 fold change, or the logit of accessible."""
    return torch.cat([oracle(one_hot(part)) for part in tokens.split(chunk)])
