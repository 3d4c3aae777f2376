"""A labeled table of images as one picture: prompts down, models across, scores below each.

Pillow alone, with the font that is built into it (Latin letters without accents: `é` is drawn `e`).
"""

import unicodedata
from collections.abc import Sequence
from itertools import accumulate

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

SMALLEST, LARGEST = 128, 256
"""Pixels along a picture's longer side: without `scale`, smaller ones are enlarged, larger ones
reduced."""

MARGIN, GAP, LABEL = 20, 8, 112
"""Pixels around the table, between its parts, and at most for a row label, which is wrapped."""

FINE = 4
"""Text is drawn this many times larger than shown."""

GROUND, INK, FAINT = "#ffffff", "#2b2d31", "#6b6f76"


def table(
    cells: Sequence[Sequence[Image.Image]],
    rows: Sequence[str],
    columns: Sequence[str],
    captions: Sequence[Sequence[str]] | None = None,
    scale: int | None = None,
    title: str = "",
) -> Image.Image:
    """The table as one RGB picture on a white ground.

    `cells[r][c]` is the picture of row r and column c; `captions[r][c]` is written under it. The
    first line of `title` is large, the others small. `scale` enlarges by a whole factor; without it
    pictures under 128 pixels are enlarged (by a whole factor) and pictures over 256 reduced. Raises
    ValueError where the labels do not match the cells.
    """
    captions = captions or [[""] * len(columns)] * len(rows)
    for what, lengths in {"cells": [*map(len, cells)], "captions": [*map(len, captions)]}.items():
        if lengths != [len(columns)] * len(rows):
            labels = f"{len(rows)} row labels and {len(columns)} column labels"
            raise ValueError(f"{what}: the rows have {lengths} entries, but there are {labels}")
    pictures = [[_fit(cell, scale) for cell in row] for row in cells]
    width, height = np.max([picture.size for row in pictures for picture in row], axis=0).tolist()

    labels = [_text(row, 15, LABEL) for row in rows]
    heads = [_text(column, 15, width, center=True) for column in columns]
    scores = [[_text(text, 13, width, FAINT, center=True) for text in row] for row in captions]
    left = MARGIN + max(label.width + 2 * GAP if label.width else 0 for label in labels)
    right = left + len(columns) * (width + GAP) - GAP
    above = _title(title, right - MARGIN)
    first = MARGIN + above.height + max(head.height for head in heads) + GAP // 2
    lowest = [height + max(text.height for text in row) for row in scores]
    steps = [max(label.height, low) + GAP for label, low in zip(labels, lowest, strict=True)]
    tops = [*accumulate(steps, initial=first)]

    out = Image.new("RGB", (right + MARGIN, tops[-1] - GAP + MARGIN), GROUND)
    out.paste(above, (MARGIN, MARGIN))
    lefts = [left + c * (width + GAP) for c in range(len(columns))]
    for x, head in zip(lefts, heads, strict=True):
        out.paste(head, (x, first - GAP // 2 - head.height))
    for r, y in enumerate(tops[:-1]):
        out.paste(labels[r], (MARGIN, y + max(0, (height - labels[r].height) // 2)))
        for x, shown, score in zip(lefts, pictures[r], scores[r], strict=True):
            out.paste(shown, (x + (width - shown.width) // 2, y + (height - shown.height) // 2))
            out.paste(score, (x, y + height))
    return out


def beside(pictures: Sequence[Image.Image]) -> Image.Image:
    """Several tables in one picture, side by side, their tops aligned."""
    lefts = [0, *accumulate(picture.width for picture in pictures)]
    out = Image.new("RGB", (lefts[-1], max(picture.height for picture in pictures)), GROUND)
    for picture, x in zip(pictures, lefts, strict=False):
        out.paste(picture, (x, 0))
    return out


def _fit(picture: Image.Image, scale: int | None) -> Image.Image:
    """The picture in RGB at the size in which it is shown."""
    side = max(picture.size)
    shown = LARGEST if scale is None and side > LARGEST else side * (scale or -(-SMALLEST // side))
    return ImageOps.contain(picture.convert("RGB"), (shown, shown), Image.Resampling.LANCZOS)


def _title(text: str, width: int) -> Image.Image:
    """The first line large, the others small and faint, and some room below; nothing of nothing."""
    first, *others = text.split("\n")
    parts = [_text(first, 19, width), *(_text(line, 13, width, FAINT) for line in others)]
    tops = [0, *accumulate(part.height for part in parts)]
    out = Image.new("RGB", (width, tops[-1] + GAP * bool(text)), GROUND)
    for part, y in zip(parts, tops, strict=False):
        out.paste(part, (0, y))
    return out


def _text(text: str, size: int, width: int, color: str = INK, center: bool = False) -> Image.Image:
    """Text on the ground, wrapped to `width`: centered in it, or as wide as its longest line."""
    # Drawn large and reduced: at small sizes the letters are rounded to whole pixels and stand
    # unevenly.
    font, line_height = ImageFont.load_default(FINE * size), round(1.35 * size)
    lines = _wrap(_plain(text), font, FINE * width) or [""] * bool(text)
    lengths = [font.getlength(line) for line in lines]
    used = width if center else min(width, -int(-max(lengths, default=0) // FINE))
    if not (lines and used):
        return Image.new("RGB", (0, line_height * len(lines)), GROUND)
    out = Image.new("RGB", (FINE * used, FINE * line_height * len(lines)), GROUND)
    pen = ImageDraw.Draw(out)
    for i, (line, length) in enumerate(zip(lines, lengths, strict=True)):
        x = (FINE * width - length) / 2 if center else 0
        pen.text((x, FINE * round((i + 0.78) * line_height)), line, color, font, anchor="ls")
    return out.reduce(FINE)


def _wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """Lines of at most `width` pixels.

    They are broken between words; a word wider than a line after its last _, -, / or . that fits,
    else between letters.
    """
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
            continue
        while len(word) > 1 and font.getlength(word) > width:
            shorter = range(1, len(word))
            fits = max((n for n in shorter if font.getlength(word[:n]) <= width), default=1)
            joint = max(word.rfind(mark, 0, fits) for mark in "_-/.") + 1
            lines.append(word[: joint or fits])
            word = word[joint or fits :]
        lines.append(word)
    return lines


def _plain(text: str) -> str:
    """Without what the font lacks and another spelling has: accents, dashes, the minus sign."""
    text = text.translate({0x2013: "-", 0x2014: "-", 0x2212: "-", 0x2192: "->"})
    return "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
