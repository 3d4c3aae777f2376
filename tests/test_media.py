"""One loop for all media: nothing in it asks which it is; sequences as pictures, guards, files."""

import re
from pathlib import Path

import pytest
import torch

from ddpo import media, sequences
from ddpo.errors import UserError

ROOT = Path(__file__).parents[1] / "ddpo"
LOOP = [
    file
    for folder in ("training", "rollout", "objectives")
    for file in sorted((ROOT / folder).rglob("*.py"))
]
ASKED = re.compile(
    r"\bif\b.*\b(medium|images_only|is_image|MaskSchedule|NoiseSchedule|MaskedSteps|Masked|Gaussian"
    r"|latent_dtype|alphabet|masked_sequence|dna)\b|isinstance\([^)]*(Steps|Schedule|Gaussian|Masked)"
)


@pytest.mark.parametrize("file", LOOP, ids=lambda file: str(file.relative_to(ROOT)))
def test_nothing_in_the_loop_asks_for_the_medium(file: Path) -> None:
    asking = [line for line in file.read_text(encoding="utf-8").splitlines() if ASKED.search(line)]
    assert asking == []


def one_hot(*texts: str) -> torch.Tensor:
    return sequences.from_text(texts)


def test_guards_by_hand() -> None:
    samples = one_hot("AACC", "GGGG", "ACGT", "GGGG")
    measured = media.MEDIA["dna"].measure(samples)
    values = media.MEDIA["dna"].compared(measured)
    assert values["gc_content"].tolist() == [0.5, 1, 0.5, 1]
    assert values["longest_run"].tolist() == [2, 4, 1, 4]
    assert values["entropy"].tolist() == pytest.approx([1, 0, 2, 0])
    assert values["duplicates"].tolist() == [0, 1, 0, 1]
    assert "gc_content" not in media.MEDIA["protein"].guards


def test_duplicates_are_found_across_chunks() -> None:
    samples = one_hot("AACC", "GGGG", "ACGT", "GGGG")
    parts = [media.MEDIA["dna"].measure(samples[i : i + 1]) for i in range(4)]
    columns = {name: torch.tensor(c).double() for name, c in media.joined(parts).items()}
    assert media.MEDIA["dna"].compared(columns)["duplicates"].tolist() == [0, 1, 0, 1]


def test_fasta_there_and_back(tmp_path: Path) -> None:
    texts = ["ACGT" * 40, "TTTT" * 40]
    (tmp_path / "two.fasta").write_text(sequences.fasta(["one", "two"], texts))
    assert max(map(len, (tmp_path / "two.fasta").read_text().splitlines())) == sequences.LINE
    records = media.MEDIA["dna"].read(tmp_path / "two.fasta")
    assert [name for name, _ in records] == ["one", "two"]
    assert [media.MEDIA["dna"].texts(sample)[0] for _, sample in records] == texts


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("ACGT\n", "letters before a line that begins with '>'"),
        (">one\n", "the record 'one' has no letters"),
        ("", "no record in it"),
        (">one\nACGU\n", "'U' in ACGU... is none of the letters ACGT"),
    ],
)
def test_what_is_no_fasta(content: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "bad.fasta").write_text(content)
    with pytest.raises(UserError, match=re.escape(told)):
        media.MEDIA["dna"].read(tmp_path / "bad.fasta")


def test_a_picture_of_letters_has_a_color_for_each() -> None:
    (picture,) = media.MEDIA["dna"].pictures(one_hot("A" * 30))
    assert picture.height > picture.width / 20 and len(picture.getcolors(1 << 20)) > 2
