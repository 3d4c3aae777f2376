"""Sequences of the DNA world: a second-order background with sites of transcription factors.

The words are consensus sequences of JASPAR 2024 (Rauluseviciute et al., Nucleic Acids Research 52,
D174, 2024; doi 10.1093/nar/gkad1059): at each position the most frequent letter of the matrix that
is named, over the columns that are named. Shortened means that some columns are left out:

    HNF4A  MA0114.5, all 9 columns             FOXA   MA0148.2 (FOXA1), columns 1 to 9 of 11
    HNF1A  MA0046.3, all 13 columns            GATA   MA0035.2 (Gata1), columns 3 to 10 of 11
    CEBPA  MA0102.5, columns 2 to 9 of 10      REST   MA0138.2, columns 1 to 9 of 21 (half a site)

These are factors of the liver (REST: a repressor elsewhere). Everything else is invented: rates,
spacings, and what a site does (`activity.py`).

A sequence is drawn so:

1. Background: each letter given the two before it (`TRANSITIONS`). The table was drawn once from a
   Dirichlet law, 100 x (.27, .23, .23, .27) per row, with G after C made .6 times as likely (CpG
   depletion).
2. With probability .15 it is "enhancer-like": rates of activators times 2.2, of REST over 2.2.
3. With probability .1 (enhancer-like: .22) it holds a composite: HNF4A, a gap of 3 to 12 letters,
   CEBPA, both on the same strand.
4. Of each factor, a Poisson number of sites (rates: `MOTIFS`), each on either strand with equal
   probability. A site never covers another. Each letter of a site is replaced by another one with
   probability .04.
"""

from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

LETTERS = "ACGT"
"""Letter i is token i; the complement of token i is 3 - i."""
LENGTH = 100
MUTATION = 0.04
ENHANCER_LIKE = 0.15
ENRICHMENT = 2.2
COMPOSITE = 0.1
GAPS = range(3, 13)
"""Letters between the two sites of a composite."""
PLACEMENTS = 20
"""A site is dropped when this many random places were all taken, which is rare."""


@dataclass(frozen=True)
class Motif:
    """A factor's word, and its expected number of sites where a sequence is not enhancer-like."""

    word: str
    rate: float
    activator: bool = True

    @property
    def tokens(self) -> list[int]:
        return [LETTERS.index(letter) for letter in self.word]


MOTIFS = {
    "HNF4A": Motif("CAAAGTCCA", 0.22),
    "HNF1A": Motif("GTTAATGATTAAC", 0.20),
    "CEBPA": Motif("TTGCACAA", 0.22),
    "FOXA": Motif("TGTTTACTT", 0.35),
    "GATA": Motif("AGATAAGA", 0.25),
    "REST": Motif("TTCAGCACC", 0.25, activator=False),
}

FIRST = (0.28, 0.24, 0.19, 0.29)
"""Of the first two letters."""

TRANSITIONS = {
    "AA": (0.25, 0.24, 0.19, 0.32),
    "AC": (0.32, 0.28, 0.11, 0.29),
    "AG": (0.25, 0.27, 0.23, 0.25),
    "AT": (0.34, 0.21, 0.22, 0.23),
    "CA": (0.26, 0.24, 0.20, 0.30),
    "CC": (0.21, 0.30, 0.14, 0.35),
    "CG": (0.35, 0.23, 0.22, 0.20),
    "CT": (0.28, 0.17, 0.20, 0.35),
    "GA": (0.25, 0.28, 0.23, 0.24),
    "GC": (0.32, 0.31, 0.11, 0.26),
    "GG": (0.29, 0.22, 0.18, 0.31),
    "GT": (0.25, 0.23, 0.22, 0.30),
    "TA": (0.29, 0.18, 0.26, 0.27),
    "TC": (0.38, 0.23, 0.10, 0.29),
    "TG": (0.23, 0.23, 0.26, 0.28),
    "TT": (0.32, 0.24, 0.23, 0.21),
}
"""Probabilities of A, C, G, T after two letters."""


def draw(count: int, seed: int) -> Int[Tensor, "count 100"]:
    """Tokens of `count` sequences; a function of both numbers."""
    rng = np.random.default_rng(seed)
    tokens = background(count, rng)
    taken = np.zeros(tokens.shape, dtype=bool)
    enriched = np.where(rng.random(count) < ENHANCER_LIKE, ENRICHMENT, 1.0)
    _place_composites(tokens, taken, rng.random(count) < COMPOSITE * enriched, rng)
    for motif in MOTIFS.values():
        rates = motif.rate * (enriched if motif.activator else 1 / enriched)
        sites = rng.poisson(rates)
        written = [1] * len(motif.word)
        for earlier in range(int(sites.max(initial=0))):
            _place(tokens, taken, np.flatnonzero(sites > earlier), motif.tokens, written, rng)
    return torch.from_numpy(tokens)


def background(count: int, rng: np.random.Generator) -> np.ndarray:
    """Tokens, `(count, 100)`, of the second-order chain without any site."""
    table = np.array([TRANSITIONS[a + b] for a, b in product(LETTERS, LETTERS)]).reshape(4, 4, 4)
    cumulative = table.cumsum(-1)
    tokens = np.empty((count, LENGTH), dtype=np.int64)
    first = np.searchsorted(np.cumsum(FIRST), rng.random((count, 2)), side="right")
    tokens[:, :2] = first.clip(max=3)
    for i in range(2, LENGTH):
        passed = rng.random((count, 1)) >= cumulative[tokens[:, i - 2], tokens[:, i - 1]]
        tokens[:, i] = passed.sum(-1).clip(max=3)
    return tokens


def _place_composites(
    tokens: np.ndarray, taken: np.ndarray, chosen: np.ndarray, rng: np.random.Generator
) -> None:
    """Write HNF4A, a gap of the background's letters and CEBPA into the chosen sequences."""
    first, second = MOTIFS["HNF4A"].tokens, MOTIFS["CEBPA"].tokens
    gaps = rng.integers(GAPS.start, GAPS.stop, len(tokens))
    for gap in GAPS:
        word = [*first, *[0] * gap, *second]
        written = [1] * len(first) + [0] * gap + [1] * len(second)
        _place(tokens, taken, np.flatnonzero(chosen & (gaps == gap)), word, written, rng)


def _place(
    tokens: np.ndarray,
    taken: np.ndarray,
    rows: np.ndarray,
    word: list[int],
    written: list[int],
    rng: np.random.Generator,
) -> None:
    """Write `word`, where `written` is 1, at a free place of each row: either strand, mutated."""
    letters = np.tile(np.array(word), (len(rows), 1))
    shift = rng.integers(1, 4, letters.shape) * (rng.random(letters.shape) < MUTATION)
    letters = (letters + shift) % 4
    masks = np.tile(np.array(written, dtype=bool), (len(rows), 1))
    reverse = rng.random(len(rows)) < 0.5
    letters[reverse] = 3 - letters[reverse, ::-1]
    masks[reverse] = masks[reverse, ::-1]
    for _ in range(PLACEMENTS):
        columns = rng.integers(0, LENGTH - len(word) + 1, (len(rows), 1)) + np.arange(len(word))
        free = ~(taken[rows[:, None], columns] & masks).any(-1)
        there = (rows[free, None], columns[free])
        tokens[there] = np.where(masks[free], letters[free], tokens[there])
        taken[there] |= masks[free]
        rows, letters, masks = rows[~free], letters[~free], masks[~free]
        if not len(rows):
            return


def reverse_complement(tokens: Int[Tensor, "*B L"]) -> Int[Tensor, "*B L"]:
    """The other strand, read in its own direction."""
    return 3 - tokens.flip(-1)


def encode(sequences: list[str]) -> Int[Tensor, "B L"]:
    """Tokens of sequences of equal length. Raises ValueError for a letter not in A, C, G, T."""
    for sequence in sequences:
        if strange := set(sequence) - set(LETTERS):
            raise ValueError(f"{min(strange)!r} in {sequence[:20]}...: letters are A, C, G and T")
    return torch.tensor([[LETTERS.index(letter) for letter in sequence] for sequence in sequences])


def decode(tokens: Int[Tensor, "B L"]) -> list[str]:
    """The sequences as text."""
    return ["".join(LETTERS[token] for token in row) for row in tokens.tolist()]
