"""What a model makes: how its samples are shown, guarded, written and read.

A model names its medium, and a reward that of what it scores (images, unless it says another).
Nothing else asks which it is.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ddpo import images, sequences
from ddpo.errors import UserError, nearest
from ddpo.sequences import ALPHABETS


class Medium(Protocol):
    """One kind of samples.

    name    by which rewards and results know it
    shown   what several of them are called
    guards  the statistics that are logged of it as guard/<name>
    suffix  the ending of a file that keeps one
    """

    name: str
    shown: str
    guards: tuple[str, ...]
    suffix: str

    def as_kept(self, samples: Tensor) -> Tensor:
        """What `kept` of these, read again, gives, on their device."""
        ...

    def kept(self, samples: Tensor) -> list[bytes]:
        """The content of a file for each sample."""
        ...

    def reread(self, content: bytes) -> Tensor:
        """The sample in such a file, as a batch of one on the CPU.

        Raises ValueError where it is damaged.
        """
        ...

    def measure(self, samples: Tensor) -> dict[str, Tensor]:
        """What each guard reads off each of B samples: B numbers."""
        ...

    def compared(self, measured: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The guards' values, once the measures of all samples of a set are there."""
        ...

    def pictures(self, samples: Tensor) -> list[Image.Image]:
        """One picture for each sample."""
        ...

    def texts(self, samples: Tensor) -> list[str]:
        """What is written of each sample besides its picture; empty: nothing."""
        ...

    def content(self, samples: Tensor) -> list[bytes]:
        """What tells samples apart."""
        ...

    def apart(self, one: Tensor, other: Tensor) -> str:
        """How much samples differ from others, in words: `by up to ...`."""
        ...

    def size(self, samples: Tensor) -> str:
        """What samples must have in common to be compared, in words."""
        ...

    def examples(self) -> Tensor:
        """Six samples that differ, for checks of rewards."""
        ...

    def read(self, file: Path) -> list[tuple[str, Tensor]]:
        """The samples that a file holds, each with a name and as a batch of one.

        Raises UserError where it holds none.
        """
        ...


class Images:
    """Float[Tensor, "B 3 H W"] in [0, 1]."""

    name = shown = "images"
    guards = tuple(images.GUARDS)
    suffix = ".png"

    def as_kept(self, samples: Tensor) -> Tensor:
        """To 256 levels, as a file shows them."""
        return images.to_uint8(samples).permute(0, 3, 1, 2).float() / 255

    def kept(self, samples: Tensor) -> list[bytes]:
        return [_png(picture) for picture in images.to_pil(samples)]

    def reread(self, content: bytes) -> Tensor:
        try:
            with Image.open(io.BytesIO(content)) as picture:
                return images.from_pil([picture])
        except (OSError, SyntaxError) as error:  # so Pillow says that a PNG is broken
            raise ValueError(f"no picture ({error})") from error

    def measure(self, samples: Tensor) -> dict[str, Tensor]:
        return {name: guard(samples) for name, guard in images.GUARDS.items()}

    def compared(self, measured: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(measured)

    def pictures(self, samples: Tensor) -> list[Image.Image]:
        return images.to_pil(samples)

    def texts(self, samples: Tensor) -> list[str]:
        return [""] * len(samples)

    def content(self, samples: Tensor) -> list[bytes]:
        return [array.tobytes() for array in images.to_uint8(samples).cpu().numpy()]

    def apart(self, one: Tensor, other: Tensor) -> str:
        return f"by up to {255 * (one - other).abs().max().item():.2g}/255"

    def size(self, samples: Tensor) -> str:
        return f"{samples.shape[3]}x{samples.shape[2]}"

    def examples(self) -> Tensor:
        """The six pictures of conformance.png, 64x64."""
        with Image.open(Path(__file__).parent / "scoring" / "conformance.png") as row:
            return torch.cat(images.from_pil([row]).chunk(6, dim=3))

    def read(self, file: Path) -> list[tuple[str, Tensor]]:
        try:
            with Image.open(file) as picture:
                return [(str(file), images.from_pil([picture.convert("RGB")]))]
        except (OSError, Image.DecompressionBombError) as error:
            raise UserError(f"{file}: cannot be read as an image ({error})") from error


class Sequences:
    """Float[Tensor, "B L A"], one-hot rows over the letters of an alphabet."""

    shown, suffix = "sequences", ".txt"

    def __init__(self, name: str) -> None:
        self.name, self.alphabet = name, ALPHABETS[name]
        nucleic = len(self.alphabet) == 4
        self.guards = tuple(g for g in sequences.GUARDS if nucleic or g != "gc_content")

    def as_kept(self, samples: Tensor) -> Tensor:
        return samples.float()

    def kept(self, samples: Tensor) -> list[bytes]:
        return [f"{text}\n".encode() for text in self.texts(samples)]

    def reread(self, content: bytes) -> Tensor:
        text = content.decode("ascii", "replace")
        if not text.endswith("\n"):
            raise ValueError("it breaks off")
        try:
            return sequences.from_text([text.strip()], self.alphabet)
        except UserError as error:
            raise ValueError(str(error)) from error

    def measure(self, samples: Tensor) -> dict[str, Tensor]:
        return {name: sequences.GUARDS[name](samples) for name in self.guards}

    def compared(self, measured: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {**measured, "duplicates": sequences.duplicates(measured["duplicates"])}

    def pictures(self, samples: Tensor) -> list[Image.Image]:
        return [colored(text, self.alphabet) for text in self.texts(samples)]

    def texts(self, samples: Tensor) -> list[str]:
        return sequences.to_text(samples, self.alphabet)

    def content(self, samples: Tensor) -> list[bytes]:
        return [text.encode() for text in self.texts(samples)]

    def apart(self, one: Tensor, other: Tensor) -> str:
        differ = sequences.letters(one) != sequences.letters(other)
        return f"in {int(differ.sum())} of {differ.numel()} letters"

    def size(self, samples: Tensor) -> str:
        return f"{samples.shape[1]} letters"

    def examples(self) -> Tensor:
        """Of 100 letters: four drawn at random, one of two letters, one of a single letter."""
        source, size = torch.Generator().manual_seed(0), len(self.alphabet)
        numbers = torch.randint(size, (6, 100), generator=source)
        numbers[4], numbers[5] = numbers[4] % 2, 0
        return torch.nn.functional.one_hot(numbers, size).float()

    def read(self, file: Path) -> list[tuple[str, Tensor]]:
        records = sequences.read_fasta(file)
        try:
            return [(name, sequences.from_text([text], self.alphabet)) for name, text in records]
        except UserError as error:
            raise UserError(f"{file}: {error}") from error


def _png(picture: Image.Image) -> bytes:
    content = io.BytesIO()
    picture.save(content, "PNG")
    return content.getvalue()


COLORS = ("#2f8f4e", "#2f5fb3", "#c98a1b", "#b8433a")
"""Of A, C, G and T, as sequence logos have them; the letters of a longer alphabet go round."""

COLUMNS, CELL = 20, (12, 17)
"""Letters on a line of a picture; pixels of one, width and height."""


def colored(text: str, alphabet: str) -> Image.Image:
    """The letters of a sequence as a picture, each in its color."""
    width, height = CELL
    lines = [text[i : i + COLUMNS] for i in range(0, len(text), COLUMNS)]
    size = (width * min(COLUMNS, len(text)) + 12, height * len(lines) + 12)
    picture = Image.new("RGB", size, "#ffffff")
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(14)
    for row, line in enumerate(lines):
        for column, letter in enumerate(line):
            place = (6 + (column + 0.5) * width, 6 + (row + 0.5) * height)
            color = COLORS[alphabet.index(letter) % len(COLORS)]
            pen.text(place, letter, color, font, anchor="mm")
    return picture


IMAGES = Images()
MEDIA: dict[str, Medium] = {"images": IMAGES, **{name: Sequences(name) for name in ALPHABETS}}
"""Every medium by its name."""

GUARDS = tuple(dict.fromkeys(guard for medium in MEDIA.values() for guard in medium.guards))
"""The guards of all media."""


def find(name: str) -> Medium:
    """Raises UserError where nothing has that name."""
    if name not in MEDIA:
        raise UserError(f"medium: nothing is called {name!r}{nearest(name, MEDIA)}")
    return MEDIA[name]


def joined(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, list[float]]:
    """The measures of several chunks, one list for each guard."""
    names = parts[0] if parts else ()
    return {name: torch.cat([part[name] for part in parts]).tolist() for name in names}
