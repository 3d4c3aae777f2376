"""docs/results.md and its plots from the JSONs of the study: no number there is written by hand."""

import json
import math
import statistics
import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from study_arms import QUERIES, TUNED, TUNING_SEED
from study_claims import CLAIMS, Claim, Pool, Result, gain, interval, kl, recognized, reward_of

DOCS = Path(__file__).parents[2] / "docs"


def write(folder: Path) -> None:
    """docs/results.md and docs/results_N.png."""
    pool: Pool = {}
    for file in sorted(folder.glob("*.json")):
        result = json.loads(file.read_text(encoding="utf-8"))
        if result["seed"] == TUNING_SEED:
            continue
        pool.setdefault((result["task"], result["arm"]), {})[result["seed"]] = result
    everything = [result for seeds in pool.values() for result in seeds.values()]
    lines = [*head(everything), "| claim | verdict |", "| --- | --- |"]
    lines += [f"| {claim.number}. {claim.title} | {verdict(claim, pool)} |" for claim in CLAIMS]
    lines += [line for claim in CLAIMS for line in section(claim, pool)]
    (DOCS / "results.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for claim in CLAIMS:
        if speaks(claim, pool):
            plot(claim, pool, DOCS / f"results_{claim.number}.png")


def head(results: Sequence[Result]) -> list[str]:
    hours = sum(result["cpu_s"] for result in results) / 3600
    commits = ", ".join(sorted({result["commit"] for result in results}))
    rates = ", ".join(f"{family} {lr:g}" for family, lr in TUNED.items())
    paragraphs = [
        (
            "Made by `python benchmarks/study/study.py report` from the runs in "
            "`benchmarks/results/`, which `python benchmarks/study/study.py run` makes; "
            "no number here is written by hand. The model is the small embedded one: "
            "a toy world of emoji scenes, not Stable Diffusion."
        ),
        (
            f"{len(results)} runs, {hours:.1f} CPU-hours on one core each, commits {commits}. "
            f"Every run has {QUERIES} reward queries (640 in the task `guided`, "
            "480 in the arms with `passes`) and ends with two pictures of every prompt at fixed "
            "seeds, before and after. Tuning, equal for every method: two learning rates, "
            f"a run each, at a seed that no result uses; chosen: {rates}. Given is the mean over "
            "seeds and half of its 95 % interval (Student's t, over 3 seeds: wide). "
            "A check is `held` or `not held` where its interval excludes 0, else `undecided`; "
            "a claim is what its worst check is."
        ),
    ]
    texts = [line for text in paragraphs for line in (textwrap.fill(text, 110), "")]
    return ["# The papers' claims in the emoji world", "", *texts]


def speaks(claim: Claim, pool: Pool) -> bool:
    """Whether there is something to compare."""
    return sum(arm in pool for arm in claim.arms) > 1


def verdict(claim: Claim, pool: Pool) -> str:
    """All checks must hold; one that does not refutes the claim."""
    words = {check.verdict(pool)[0] for check in claim.checks}
    worst = next((word for word in ("not held", "undecided", "held") if word in words), "not run")
    return f"{worst}, part not run" if "not run" in words - {worst} else worst


def section(claim: Claim, pool: Pool) -> list[str]:
    found = [(check, *check.verdict(pool)) for check in claim.checks]
    lines = [
        "",
        f"## {claim.number}. {claim.title}",
        "",
        f"{claim.source}. {claim.note}".strip(),
        "",
    ]
    if speaks(claim, pool):
        lines += [*table(claim, pool), "", f"![curves](results_{claim.number}.png)", ""]
    lines += ["| check | difference | verdict |", "| --- | --- | --- |"]
    return lines + [
        f"| {check.task}: {check.words} | {numbers} | {word} |" for check, word, numbers in found
    ]


def table(claim: Claim, pool: Pool) -> list[str]:
    gains = " | ".join(f"gain on {judged}" for judged in claim.sets)
    lines = [f"| task | arm | {gains} | recognized | KL to the reference | CPU-minutes |"]
    lines.append("| --- " * (5 + len(claim.sets)) + "|")
    for task, arm in claim.arms:
        if results := list(pool.get((task, arm), {}).values()):
            measured = [*([gain(result, judged) for result in results] for judged in claim.sets)]
            measured += [
                [recognized(result) for result in results],
                [kl(result) for result in results],
            ]
            measured += [[result["train_cpu_s"] / 60 for result in results]]
            cells = " | ".join(map(show, measured))
            lines.append(f"| {task} | {arm} | {cells} |")
    return lines


def show(values: Sequence[float]) -> str:
    mean, half = interval(values)
    return f"{mean:.3g}" + (f" +- {half:.2g}" if math.isfinite(half) else " (1 seed)")


def plot(claim: Claim, pool: Pool, file: Path) -> None:
    """A row a task: the reward of the sampled images over queries and over CPU time, and what it
    cost."""
    tasks = list(dict.fromkeys(task for task, arm in claim.arms if (task, arm) in pool))
    figure, axes = plt.subplots(len(tasks), 3, figsize=(15, 3.6 * len(tasks)), squeeze=False)
    for row, task in zip(axes, tasks, strict=True):
        for color, arm in enumerate(
            name for where, name in claim.arms if where == task and (where, name) in pool
        ):
            draw(row[:2], pool[task, arm], arm, f"C{color}")
            results = pool[task, arm].values()
            row[2].scatter(
                [*map(recognized, results)], [*map(gain, results)], color=f"C{color}", label=arm
            )
        labels = ("reward queries", "CPU-minutes of training", "recognized, at the end")
        for ax, label in zip(row, labels, strict=True):
            ax.set(xlabel=label, ylabel=reward_of(task), title=task)
            ax.grid(alpha=0.3)
        row[0].legend(fontsize=8)
        row[2].set(xlim=(-0.05, 1.05), ylabel="gain: one point a seed")
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    plt.close(figure)


def draw(row: Sequence[Axes], seeds: dict[int, Result], arm: str, color: str) -> None:
    """The mean over seeds and the band of their range; each point is a mean over three
    iterations."""
    curves = [
        smooth([line["reward/mean"] for line in result["curve"]]) for result in seeds.values()
    ]
    length = min(map(len, curves))
    columns = list(zip(*(curve[:length] for curve in curves), strict=True))
    first = next(iter(seeds.values()))["curve"][:length]
    queries = [line["images_seen"] for line in first]
    cpu = statistics.mean(result["train_cpu_s"] for result in seeds.values()) / 60
    minutes = [cpu * count / queries[-1] for count in queries]  # wall time depends on what else ran
    for ax, x in zip(row, (queries, minutes), strict=True):
        ax.plot(
            x,
            [statistics.mean(column) for column in columns],
            color=color,
            label=f"{arm} ({len(curves)})",
        )
        ax.fill_between(
            x,
            list(map(min, columns)),
            list(map(max, columns)),
            color=color,
            alpha=0.15,
            linewidth=0,
        )


def smooth(values: Sequence[float]) -> list[float]:
    return [statistics.mean(values[max(0, i - 1) : i + 2]) for i in range(len(values))]
