"""The one sequence convention, Float[Tensor, "B L A"]; conversions out of it; FASTA; the guards.

A sequence is L rows over the A letters of an alphabet, fp32, each with a one at its letter: what an
image's pixels are to a reward on images. A relaxed one, whose rows are probabilities, carries a
gradient. All sequences of a call have one length.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from ddpo.errors import UserError

ALPHABETS = {"dna": "ACGT", "rna": "ACGU", "protein": "ACDEFGHIKLMNPQRSTVWY"}
"""Letters in their order, by the name of what they spell."""

LINE = 60
"""Letters on a line of a FASTA file."""


def letters(sequences: Float[Tensor, "B L A"]) -> Int[Tensor, "B L"]:
    """The number of each place's letter; of a relaxed sequence, of its likeliest one."""
    return sequences.argmax(-1)


def to_text(sequences: Float[Tensor, "B L A"], alphabet: str = ALPHABETS["dna"]) -> list[str]:
    """One text for each sequence. Raises ValueError for an alphabet of another size."""
    if sequences.shape[-1] != len(alphabet):
        raise ValueError(f"{sequences.shape[-1]} letters a place, but the alphabet is {alphabet}")
    return ["".join(alphabet[number] for number in row) for row in letters(sequences).tolist()]


def from_text(texts: Sequence[str], alphabet: str = ALPHABETS["dna"]) -> Float[Tensor, "B L A"]:
    """fp32 on the CPU from texts of one length.

    Raises UserError for a letter that the alphabet lacks, ValueError for several lengths.
    """
    for text in texts:
        if strange := sorted(set(text) - set(alphabet)):
            raise UserError(
                f"{strange[0]!r} in {text[:24]}... is none of the letters {alphabet}; "
                "leave such sequences out"
            )
    numbers = torch.tensor([[alphabet.index(letter) for letter in text] for text in texts])
    return F.one_hot(numbers, len(alphabet)).float()


def read_fasta(file: Path) -> list[tuple[str, str]]:
    """Name and letters, in capitals, of each record. Raises UserError for anything but FASTA."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read as FASTA ({error})") from error
    records: list[tuple[str, list[str]]] = []
    for number, line in enumerate(map(str.strip, lines), 1):
        if line.startswith(">"):
            records.append((line[1:].split(maxsplit=1)[0] if line[1:].split() else "", []))
        elif line and not records:
            raise UserError(
                f"{file}, line {number}: letters before a line that begins with '>'; "
                "a record of FASTA begins with its name, as in >first"
            )
        elif line:
            records[-1][1].append(line.upper())
    empty = [name for name, parts in records if not parts]
    if not records or empty:
        what = f"the record {empty[0]!r} has no letters" if empty else "no record in it"
        raise UserError(f"{file}: {what}; it must read like >first, and ACGT on the next line")
    return [(name, "".join(parts)) for name, parts in records]


def fasta(names: Sequence[str], texts: Sequence[str]) -> str:
    """The content of a FASTA file."""
    records = []
    for name, text in zip(names, texts, strict=True):
        records += [f">{name}", *(text[i : i + LINE] for i in range(0, len(text), LINE))]
    return "\n".join(records) + "\n"


def gc_content(sequences: Float[Tensor, "B L A"]) -> Float[Tensor, "B"]:
    """Share of G and C among the letters of DNA or RNA, in [0, 1]; differentiable."""
    return sequences[..., 1:3].sum(-1).mean(-1)


def longest_run(sequences: Float[Tensor, "B L A"]) -> Float[Tensor, "B"]:
    """Length of the longest run of one letter (homopolymer), 1 to L."""
    numbers = letters(sequences)
    run = longest = torch.ones_like(numbers[:, 0])
    for i in range(1, numbers.shape[1]):
        run = torch.where(numbers[:, i] == numbers[:, i - 1], run + 1, 1)
        longest = torch.maximum(longest, run)
    return longest.float()


def entropy(sequences: Float[Tensor, "B L A"]) -> Float[Tensor, "B"]:
    """Entropy of a sequence's letters, -sum_a f_a log2 f_a, 0 to log2 A bits; differentiable."""
    return torch.special.entr(sequences.mean(1)).sum(-1) / torch.log(torch.tensor(2.0))


def fingerprint(sequences: Float[Tensor, "B L A"]) -> Float[Tensor, "B"]:
    """A whole number below 2^53 in fp64, equal for equal sequences.

    Two that differ have the same one with a probability of about 1e-15.
    """
    numbers = letters(sequences)
    places = torch.Generator().manual_seed(sequences.shape[1])
    size = (numbers.shape[1], sequences.shape[-1])
    weights = torch.randint(2**52, size, generator=places).to(numbers.device)
    own = weights[torch.arange(numbers.shape[1], device=numbers.device), numbers]
    return (own.sum(1) % 2**53).double()


def duplicates(fingerprints: Float[Tensor, "B"]) -> Float[Tensor, "B"]:
    """1 for a sequence that another one of the set equals, else 0."""
    _, place, count = fingerprints.unique(return_inverse=True, return_counts=True)
    return (count[place] > 1).float()


Guard = Callable[[Tensor], Tensor]

GUARDS: dict[str, Guard] = {
    "gc_content": gc_content,
    "longest_run": longest_run,
    "entropy": entropy,
    "duplicates": fingerprint,
}
"""What is logged as guard/<name>; duplicates are counted once all sequences of a set are there."""
