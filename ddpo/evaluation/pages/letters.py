"""Sequences of an evaluation as one picture: what they score, and the words that came up.

Reads the FASTA files and the scores of an evaluation; one without FASTA has no such picture.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import PathPatch
from matplotlib.textpath import TextPath
from matplotlib.transforms import Affine2D
from numpy.typing import NDArray

from ddpo.media import COLORS
from ddpo.records import metrics
from ddpo.sequences import read_fasta

WORD, FLANK, LOGOS = 8, 2, 4
"""Letters of a word whose sites make a logo, letters shown on each side of it, and logos."""

HISTOGRAMS = 4
"""Scores that are shown as histograms, from the first."""

BASE, TUNED = "#8a8f98", "#c77b3b"


def picture(evaluation: Path) -> Figure | None:
    """Histograms of the scores of base and tuned above, logos of the words below.

    None where the evaluation has no sequences.
    """
    texts = {column: _texts(evaluation, column) for column in ("base", "tuned")}
    if not all(texts.values()):
        return None
    scores = _scores(evaluation)
    names = [name for name in scores["base"] if len({*scores["base"][name]}) > 2][:HISTOGRAMS]
    figure = Figure(figsize=(11, 5.6), layout="constrained")
    parts: Any = figure.subfigures(2, 1, height_ratios=(1, 0.9))
    upper, lower = parts
    for ax, name in zip(np.ravel(upper.subplots(1, max(len(names), 1))), names, strict=False):
        _histogram(ax, name, {column: scores[column][name] for column in texts})
    words = risen(texts["base"], texts["tuned"])
    lower.suptitle("words that became more frequent, as logos of their sites (bits)", fontsize=10)
    for ax, word in zip(np.ravel(lower.subplots(1, LOGOS)), [*words, *[""] * LOGOS], strict=False):
        _logo(ax, word, texts)
    return figure


def risen(base: Sequence[str], tuned: Sequence[str], count: int = LOGOS) -> list[str]:
    """The words that rose most per sequence, none of them a shifted copy of a better one."""
    before, after = (_words(texts) for texts in (base, tuned))
    rise = {word: after[word] / len(tuned) - before[word] / len(base) for word in after}
    chosen: list[str] = []
    for word in sorted(rise, key=lambda word: (-rise[word], word)):
        if rise[word] > 0 and not any(_overlap(word, other) for other in chosen):
            chosen.append(word)
        if len(chosen) == count:
            break
    return chosen


def sites(word: str, texts: Sequence[str], flank: int = FLANK) -> list[str]:
    """Windows around every place that differs from `word` in at most one letter."""
    found, size = [], len(word)
    for text in texts:
        for i in range(flank, len(text) - size - flank + 1):
            if sum(a != b for a, b in zip(text[i : i + size], word, strict=True)) <= 1:
                found.append(text[i - flank : i + size + flank])
    return found


def information(windows: Sequence[str], letters: str) -> Float[NDArray[np.float64], "L A"]:
    """Heights of a logo in bits: frequency times (log2 A - entropy) (Schneider & Stephens 1990)."""
    share = np.array(
        [[column.count(letter) for letter in letters] for column in zip(*windows, strict=True)],
        dtype=float,
    ) / len(windows)
    entropy = -(share * np.log2(np.where(share > 0, share, 1))).sum(1, keepdims=True)
    return share * (np.log2(len(letters)) - entropy)


def _texts(evaluation: Path, column: str) -> list[str]:
    files = sorted(evaluation.glob(f"*_{column}.fasta"))
    return [text for file in files for _, text in read_fasta(file)]


def _scores(evaluation: Path) -> dict[str, dict[str, list[float]]]:
    """By column and score, the values of all samples that have one."""
    scores: dict[str, dict[str, list[float]]] = {"base": {}, "tuned": {}}
    for line in metrics.read(evaluation / "samples.jsonl"):
        for name, value in line["scores"].items():
            if value is not None and line["column"] in scores:
                scores[line["column"]].setdefault(name, []).append(value)
    return scores


def _words(texts: Sequence[str]) -> Counter[str]:
    return Counter(text[i : i + WORD] for text in texts for i in range(len(text) - WORD + 1))


def _overlap(word: str, other: str) -> bool:
    """Whether one is the other shifted by up to half its length, with a letter's difference."""
    shifts = range(-(WORD // 2), WORD // 2 + 1)
    pairs = [
        (word[max(0, s) : WORD + min(0, s)], other[max(0, -s) : WORD - max(0, s)]) for s in shifts
    ]
    return any(sum(a != b for a, b in zip(one, two, strict=True)) <= 1 for one, two in pairs)


def _histogram(ax: Axes, name: str, values: Mapping[str, Sequence[float]]) -> None:
    both = np.concatenate([np.asarray(column) for column in values.values()])
    bins = np.linspace(both.min(), both.max() + 1e-9, 30).tolist()
    for (column, numbers), color in zip(values.items(), (BASE, TUNED), strict=True):
        ax.hist(numbers, bins, color=color, alpha=0.6, label=column)
    ax.set_title(name, fontsize=10)
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=8)
    ax.set_ylabel("sequences", fontsize=8)
    ax.legend(frameon=False, fontsize=8)


def _logo(ax: Axes, word: str, texts: Mapping[str, Sequence[str]]) -> None:
    """The letters of a word's sites among the tuned sequences, as high as what they tell."""
    windows = sites(word, texts["tuned"]) if word else []
    ax.axis("off")
    if not windows:
        return
    letters = "".join(sorted({letter for text in texts["tuned"] for letter in text}))
    for place, heights in enumerate(information(windows, letters)):
        bottom = 0.0
        for number in np.argsort(heights):
            if heights[number] > 0.02:
                color = COLORS[number % len(COLORS)]
                _letter(ax, letters[number], place, bottom, heights[number], color)
                bottom += heights[number]
    per = {column: len(sites(word, rows)) / len(rows) for column, rows in texts.items()}
    ax.set_title(f"{word}: {per['base']:.2f} -> {per['tuned']:.2f} per sequence", fontsize=8.5)
    ax.set(xlim=(0, len(windows[0])), ylim=(0, np.log2(max(len(letters), 2))))


def _letter(ax: Axes, letter: str, x: int, y: float, height: float, color: str) -> None:
    path = TextPath((0, 0), letter, size=1, prop=FontProperties(weight="bold"))
    box = path.get_extents()
    move = Affine2D().translate(-box.x0, -box.y0).scale(0.9 / box.width, height / box.height)
    shape = PathPatch(move.translate(x + 0.05, y).transform_path(path), color=color, linewidth=0)
    ax.add_patch(shape)
