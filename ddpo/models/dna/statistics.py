"""What sequences of tokens 0 to 3 look like: 3-mers, sites, GC content, longest run."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .grammar import GAPS, MOTIFS, reverse_complement


def kmers(tokens: Int[Tensor, "B L"], k: int = 3) -> Float[Tensor, " 4**k"]:
    """Frequencies of all overlapping words of k letters in all the sequences; they sum to 1."""
    powers = 4 ** torch.arange(k - 1, -1, -1, device=tokens.device)
    words = (tokens.unfold(1, k, 1) * powers).sum(-1)
    return torch.bincount(words.flatten(), minlength=4**k).double() / words.numel()


def kmer_correlation(tokens: Int[Tensor, "B L"], others: Int[Tensor, "C L"], k: int = 3) -> float:
    """Pearson's correlation of two sets' k-mer frequencies.

    As in the DRAKES paper, k = 3. It needs some 500 sequences of each: 64 sequences of the data
    reach no more than .95 with all of it.
    """
    return float(torch.corrcoef(torch.stack([kmers(tokens, k), kmers(others, k)]))[0, 1])


def sites(tokens: Int[Tensor, "B L"], name: str) -> Int[Tensor, " B"]:
    """How often a factor's exact word stands on either strand."""
    forward = _words(tokens, MOTIFS[name].tokens)
    backward = _words(reverse_complement(tokens), MOTIFS[name].tokens).flip(-1)
    return (forward | backward).sum(-1)


def composites(tokens: Int[Tensor, "B L"]) -> Int[Tensor, " B"]:
    """How often HNF4A and CEBPA stand exactly, on one strand, 3 to 12 letters apart."""
    return _composites(tokens) + _composites(reverse_complement(tokens))


def _composites(tokens: Int[Tensor, "B L"]) -> Int[Tensor, " B"]:
    first, second = (_words(tokens, MOTIFS[name].tokens) for name in ("HNF4A", "CEBPA"))
    width = len(MOTIFS["HNF4A"].word)
    pairs = [first[:, : second.shape[1] - width - gap] & second[:, width + gap :] for gap in GAPS]
    return torch.stack([pair.sum(-1) for pair in pairs]).sum(0)


def _words(tokens: Int[Tensor, "B L"], word: list[int]) -> Tensor:
    places = tokens.shape[1] - len(word) + 1
    letters = tokens.to(torch.uint8)  # eight times less memory to read
    return torch.stack([letters[:, i : places + i] == token for i, token in enumerate(word)]).all(0)


def site_frequencies(tokens: Int[Tensor, "B L"]) -> dict[str, float]:
    """Exact sites per sequence, of each factor and of the composite."""
    found = {name: sites(tokens, name) for name in MOTIFS} | {"composite": composites(tokens)}
    return {name: float(count.double().mean()) for name, count in found.items()}


def gc_content(tokens: Int[Tensor, "B L"]) -> Float[Tensor, " B"]:
    """The fraction of letters that are G or C."""
    return ((tokens == 1) | (tokens == 2)).float().mean(-1)


def longest_run(tokens: Int[Tensor, "B L"]) -> Int[Tensor, " B"]:
    """The length of the longest run of one letter (homopolymer)."""
    run = torch.ones_like(tokens[:, 0])
    longest = run
    for i in range(1, tokens.shape[1]):
        run = torch.where(tokens[:, i] == tokens[:, i - 1], run + 1, 1)
        longest = torch.maximum(longest, run)
    return longest
