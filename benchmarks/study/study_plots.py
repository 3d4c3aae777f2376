"""The fronts of a claim's arms: gain against recognition, against KL, and the one number of each
run."""

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter
from study_claims import Claim
from study_decisions import Pool, limits_of
from study_fronts import (
    RECOGNIZED,
    Checkpoint,
    Limits,
    Result,
    gain,
    gain_at_recognition,
    recognized,
    reward_of,
)

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's, which the color-blind tell apart."""

LEAST_KL = 5.0
"""Left end of the axis of KL, in nats: the start lies there, with a KL of 0."""


def plot(claim: Claim, pool: Pool, file: Path) -> None:
    """A row for each task with runs."""
    tasks = list(dict.fromkeys(task for task, arm in claim.arms if (task, arm) in pool))
    with plt.rc_context({"axes.spines.top": False, "axes.spines.right": False, "font.size": 10}):
        figure, axes = plt.subplots(
            len(tasks), 3, figsize=(15, 4.4 * len(tasks)), squeeze=False, layout="constrained"
        )
        for row, task in zip(axes, tasks, strict=True):
            arms = [arm for where, arm in claim.arms if where == task and (where, arm) in pool]
            fronts(row, pool, task, arms)
            ones(row[2], pool, task, arms)
        figure.savefig(file, dpi=100)
    plt.close(figure)


def fronts(row: Sequence[Axes], pool: Pool, task: str, arms: Sequence[str]) -> None:
    """Both fronts of every arm: its seeds thin, their mean at each checkpoint thick."""
    by_recognition, by_kl = row[:2]
    for color, arm in zip(COLORS, arms, strict=False):
        results = list(pool[task, arm].values())
        label = f"{arm} ({len(results)} seed{'s' * (len(results) > 1)})"
        line(by_recognition, results, recognized, color, label)
        line(by_kl, results, lambda each: max(each["kl"], LEAST_KL), color, label)
    by_recognition.axvspan(RECOGNIZED, 1.01, color="#009E73", alpha=0.08, linewidth=0)
    fewest = min(
        recognized(each) for a in arms for r in pool[task, a].values() for each in looks(r)
    )
    left = max(min(fewest, RECOGNIZED - 0.05) - 0.03, -0.03)
    by_recognition.set(xlim=(1.01, left), xlabel="animals recognized, fewer to the right")
    by_recognition.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    by_recognition.set_title(f"{task}: gain against recognition", loc="left")
    by_kl.set(xscale="log", xlabel="KL to the base, nats (the start at the left end)")
    by_kl.set_title(f"{task}: gain against KL", loc="left")
    lowest = [gain(r, each) for arm in arms for r in pool[task, arm].values() for each in looks(r)]
    for ax in (by_recognition, by_kl):
        ax.axhline(0, color="gray", linewidth=0.8)
        ax.set_ylabel(f"gain of {reward_of(task)}, kB")
        ax.set_ylim(max(min(lowest), -1.0) - 0.05, max(lowest) + 0.05)
        ax.grid(alpha=0.25)
    by_recognition.legend(fontsize=9, frameon=False, loc="best")


def looks(result: Result) -> list[Checkpoint]:
    return result["checkpoints"]


def line(
    ax: Axes,
    results: Sequence[Result],
    along: Callable[[Checkpoint], float],
    color: str,
    label: str,
) -> None:
    """Seeds, and the mean of those checkpoints that all of them have."""
    for result in results:
        points = [(along(each), gain(result, each)) for each in looks(result)]
        ax.plot(*zip(*points, strict=True), color=color, alpha=0.25, linewidth=0.8)
    length = min(len(looks(result)) for result in results)
    mean = [
        (
            statistics.mean(along(looks(result)[i]) for result in results),
            statistics.mean(gain(result, looks(result)[i]) for result in results),
        )
        for i in range(length)
    ]
    ax.plot(*zip(*mean, strict=True), color=color, marker="o", markersize=4, label=label)


def ones(ax: Axes, pool: Pool, task: str, arms: Sequence[str]) -> None:
    """The gain at recognition >= 90 % of every run: at equal queries, and at equal CPU time."""
    limits = limits_of([pool[task, arm] for arm in arms], "CPU")
    for place, (arm, fast, color) in enumerate(zip(arms, limits, COLORS, strict=False)):
        for down, limit, face in ((-0.13, Limits(), color), (0.13, fast, "white")):
            values = [gain_at_recognition(r, limit) for r in pool[task, arm].values()]
            at = [place + down] * len(values)
            ax.scatter(values, at, color=face, edgecolors=color, s=34, zorder=3)
            ax.plot([statistics.mean(values)] * 2, [at[0] - 0.1, at[0] + 0.1], color=color)
    ax.set_yticks(range(len(arms)), arms)
    ax.set_ylim(len(arms) - 0.4, -0.6)
    ax.axvline(0, color="gray", linewidth=0.8)
    ax.grid(alpha=0.25, axis="x")
    ax.set_xlabel("kB; filled: equal queries, open: equal CPU")
    ax.set_title(f"{task}: gain at recognition >= {RECOGNIZED:.0%}", loc="left")
