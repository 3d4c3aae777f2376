"""How active a sequence is, by a formula: what the oracles learn and what no trained model may see.

Occupancy of a factor at a place: 1 for its word, .4 with one mismatch, else 0, the better of the
two strands. Summed over places to o, it saturates: s = (1 - exp(-1.2 o)) / (1 - exp(-1.2)), so one
site gives s = 1. With each factor's name for its s,

    drive    = 1.1 HNF4A + 1.3 HNF1A + 1.0 CEBPA + .5 FOXA + .5 GATA
             + 1.6 synergy           the best pair of HNF4A then CEBPA on one strand: the lesser of
                                     their occupancies, times 1 with 3 to 7 letters between them,
                                     .5 with 8 to 12
             - 1.6 REST              repression
             - .7 min(GATA, HNF1A)   antagonism: these two get in each other's way
             - .5 max(0, sites - 5)  crowding: exact sites of the five activators
    u        = softplus(1.2 (drive - 1.5)) / 1.2
    activity = 8 (1 - exp(-u / 2.5))     in [0, 8)

The unit is log2 fold change over a minimal promoter, as in a reporter assay; the scale is invented.
`measured` adds the assay's noise, normal with standard deviation .25.

Accessible (open chromatin) is a second label that has nothing to do with activity but the FOXA
sites:

    logit = 2.6 FOXA - .7 ((GC - .46) / .06)^2 - 1.2 max(0, longest run - 5) - .9

Both are the same for a sequence and its reverse complement.
"""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from .grammar import GAPS, MOTIFS, reverse_complement
from .statistics import gc_content, longest_run

WEIGHTS = {"HNF4A": 1.1, "HNF1A": 1.3, "CEBPA": 1.0, "FOXA": 0.5, "GATA": 0.5, "REST": -1.6}
ONE_MISMATCH = 0.4
SATURATION = 1.2
NOISE = 0.25
HIGHEST = 8.0


def occupancy(tokens: Int[Tensor, "B L"], name: str) -> Float[Tensor, "B places"]:
    """Of a factor at each place of the forward strand, by the word's first letter: 1, .4 or 0."""
    word = MOTIFS[name].tokens
    places = tokens.shape[1] - len(word) + 1
    letters = tokens.to(torch.uint8)  # eight times less memory to read
    differ = [letters[:, i : places + i] != token for i, token in enumerate(word)]
    missing = torch.stack(differ).sum(0)
    return (missing == 0).float() + ONE_MISMATCH * (missing == 1).float()


def both_strands(tokens: Int[Tensor, "B L"], name: str) -> Float[Tensor, "B places"]:
    """The better of the two strands at each place."""
    other = occupancy(reverse_complement(tokens), name).flip(-1)
    return torch.maximum(occupancy(tokens, name), other)


def saturated(occupancy: Float[Tensor, "B places"]) -> Float[Tensor, " B"]:
    """The sum over places, with diminishing returns; 1 for one exact site."""
    return (1 - torch.exp(-SATURATION * occupancy.sum(-1))) / (1 - math.exp(-SATURATION))


def synergy(tokens: Int[Tensor, "B L"]) -> Float[Tensor, " B"]:
    """The best composite on either strand, 0 to 1."""
    return torch.maximum(_forward_synergy(tokens), _forward_synergy(reverse_complement(tokens)))


def _forward_synergy(tokens: Int[Tensor, "B L"]) -> Float[Tensor, " B"]:
    first, second = occupancy(tokens, "HNF4A"), occupancy(tokens, "CEBPA")
    width = len(MOTIFS["HNF4A"].word)
    best = tokens.new_zeros(len(tokens), dtype=torch.float32)
    for gap in GAPS:
        last = second.shape[1] - width - gap
        pairs = torch.minimum(first[:, : max(last, 0)], second[:, width + gap :])
        if pairs.shape[1]:
            best = torch.maximum(best, pairs.amax(-1) * (1.0 if gap <= 7 else 0.5))
    return best


def drive(tokens: Int[Tensor, "B L"]) -> Float[Tensor, " B"]:
    """The sum of what factors do, before the two saturations of the whole."""
    places = {name: both_strands(tokens, name) for name in MOTIFS}
    bound = {name: saturated(occupied) for name, occupied in places.items()}
    activators = [name for name, motif in MOTIFS.items() if motif.activator]
    sites = torch.stack([(places[name] == 1).sum(-1) for name in activators]).sum(0)
    total = torch.stack([weight * bound[name] for name, weight in WEIGHTS.items()]).sum(0)
    total = total + 1.6 * synergy(tokens) - 0.7 * torch.minimum(bound["GATA"], bound["HNF1A"])
    return total - 0.5 * (sites - 5).clamp(min=0)


def activity(tokens: Int[Tensor, "B L"]) -> Float[Tensor, " B"]:
    """The true activity, log2 fold change, in [0, 8)."""
    u = F.softplus(1.2 * (drive(tokens) - 1.5)) / 1.2
    return HIGHEST * (1 - torch.exp(-u / 2.5))


def measured(tokens: Int[Tensor, "B L"], generator: torch.Generator) -> Float[Tensor, " B"]:
    """Activity with the noise of one measurement."""
    noise = torch.randn(len(tokens), generator=generator)
    return activity(tokens) + NOISE * noise


def accessibility(tokens: Int[Tensor, "B L"]) -> Float[Tensor, " B"]:
    """The probability that a sequence is accessible."""
    bound = saturated(both_strands(tokens, "FOXA"))
    composition = ((gc_content(tokens) - 0.46) / 0.06) ** 2
    runs = (longest_run(tokens) - 5).clamp(min=0)
    return torch.sigmoid(2.6 * bound - 0.7 * composition - 1.2 * runs - 0.9)


def accessible(tokens: Int[Tensor, "B L"], generator: torch.Generator) -> Bool[Tensor, " B"]:
    """One draw of the label: open or not."""
    return torch.rand(len(tokens), generator=generator) < accessibility(tokens)
