"""The pictures of a run: before and after, and its curves."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image

from ddpo.evaluation import table as grid
from ddpo.evaluation.evidence import Json, Run, name_of, score_text, select
from ddpo.media import GUARDS

TRAIN_PROMPTS, HELDOUT_PROMPTS, BLOCK = 8, 4, 4
"""Prompts of the training and of the held-out set in before_after.png, and rows of one of its
blocks."""


SCORES = 2
"""Scores under a picture in before_after.png: that of the trained reward and that of a judge."""


BLUE, ORANGE = "#3f6fa3", "#c77b3b"


GUARD_COLORS = dict(zip(GUARDS, ("#c2a13a", "#b0567a", "#3f8f83", "#6b62a8") * 2, strict=True))


Points = NDArray[np.float64]


def before_after(run: Run) -> Image.Image:
    """One picture: the columns side by side, for prompts of the training and the held-out set."""
    judges = [name for name in run.scores if name not in run.trained]
    shown = [*run.trained[:1], *judges, *run.trained[1:]][:SCORES]
    columns, blocks = run.columns, []
    for number, (set_name, count) in enumerate(
        zip(run.sets, (TRAIN_PROMPTS, HELDOUT_PROMPTS), strict=False)
    ):
        note = "never trained on" if number else f"scores: {' / '.join(shown)}"
        chosen = select(run.pairs, set_name, count)
        for start in range(0, len(chosen), BLOCK):
            part = chosen[start : start + BLOCK]
            blocks.append(
                grid.table(
                    [
                        [Image.open(run.folder / "evaluation" / m.images[c]) for c in columns]
                        for m in part
                    ],
                    [match.prompt for match in part],
                    columns,
                    [
                        [" / ".join(score_text(m.scores[c].get(s)) for s in shown) for c in columns]
                        for m in part
                    ],
                    title=" \n " if start else f"{set_name}\n{note}",
                )
            )
    return grid.beside(blocks)


def curves(run: Run) -> Figure:
    """The training curves: reward, guards relative to their start, and the signs of a collapse."""
    figure = Figure(figsize=(11, 6))
    # not the constrained layout, which draws all of it three times to find such numbers
    figure.subplots_adjust(0.06, 0.08, 0.985, 0.94, wspace=0.3, hspace=0.38)
    upper, lower = ["reward", "reward", "guards"], ["approx_kl", "ratio/max_dev", "clip_frac"]
    axes = figure.subplot_mosaic([[*upper], [*lower]])
    _reward_curve(axes["reward"], run)
    for name, color in GUARD_COLORS.items():
        x, y = _series(run, f"guard/{name}")
        if y[:1].all():
            _line(axes["guards"], x, y / y[:1], color, name)
    axes["guards"].set_title("guards, relative to their start")
    axes["guards"].axhline(1, color="#8a8f98", linewidth=0.8, linestyle=":")
    for key in lower:
        axes[key].set_title(key)
        _line(axes[key], *_series(run, key), BLUE, None)
        axes[key].set_ylim(bottom=min(0.0, axes[key].dataLim.y0))
    for ax in axes.values():
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(alpha=0.25, linewidth=0.6)
        ax.set_xlabel("iteration", fontsize=9)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.title.set_fontsize(10)
        ax.tick_params(labelsize=9)
        if ax.get_legend_handles_labels()[1]:
            ax.legend(frameon=False, fontsize=8.5)
        elif not ax.lines:
            ax.text(0.5, 0.5, "not recorded", transform=ax.transAxes, ha="center", color="#8a8f98")
    return figure


def _reward_curve(ax: Axes, run: Run) -> None:
    """reward/mean with a band of one standard deviation, and the evaluation of a reward alone."""
    ax.set_title("reward/mean, band: one standard deviation")
    x, mean = _series(run, "reward/mean")
    _line(ax, x, mean, BLUE, "training samples")
    spread = dict(zip(*_series(run, "reward/std"), strict=True))
    band = np.array([spread.get(i, 0.0) for i in x])
    ax.fill_between(x, mean - band, mean + band, color=BLUE, alpha=0.13, linewidth=0)
    terms = run.config["rewards"]
    if [term["weight"] for term in terms] != [1.0] or not len(x):
        return  # a weighted sum has another scale than the evaluation of one reward
    reward = name_of(terms[0])
    _line(ax, *_series(run, f"eval/{reward}"), ORANGE, "evaluation during training")
    for set_name, color in zip(run.sets, (BLUE, ORANGE), strict=False):
        if entry := run.results["sets"][set_name].get(reward):
            y, error = ([entry[c][key] for c in run.columns[:2]] for key in ("mean", "se"))
            style: Json = {"fmt": "o", "mfc": "white", "capsize": 3, "color": color}
            ax.errorbar((x[0] - 1, x[-1]), y, error, label=f"evaluation on {set_name}", **style)


def _line(ax: Axes, x: Points, y: Points, color: str, label: str | None) -> None:
    if len(x):
        ax.plot(x, y, color=color, label=label, linewidth=1.6, marker="." if len(x) < 30 else "")


def _series(run: Run, key: str) -> tuple[Points, Points]:
    """The iterations that recorded a finite value, and the values."""
    x, y = (
        np.array([line.get(name) for line in run.metrics], float) for name in ("iteration", key)
    )
    return x[np.isfinite(y)], y[np.isfinite(y)]
