"""The page of a run: what happened in one sentence, before and after at matched seeds, curves, warning signs.

Reads what the run folder holds and needs no network, so that it can be written again at any time.
"""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image

from ddpo.evaluation import stats
from ddpo.evaluation import table as grid
from ddpo.images import GUARDS
from ddpo.records import metrics
from ddpo.records.files import whole
from ddpo.rewards import short_name

TRAIN_PROMPTS, HELDOUT_PROMPTS, BLOCK = 8, 4, 4
"""Prompts of the training and of the held-out set in before_after.png, and rows of one of its blocks."""

SCORES = 2
"""Scores under a picture in before_after.png: that of the trained reward and that of a judge."""

GUARD_ALERT = 0.3
"""The relative change of a guard's mean, base to tuned, from which the page warns."""

ITERATIONS, PICTURES = 6, 8
"""Iterations, and pictures of each, that the page shows of samples/."""

BLUE, ORANGE = "#3f6fa3", "#c77b3b"
GUARD_COLORS = dict(zip(GUARDS, ("#c2a13a", "#b0567a", "#3f8f83", "#6b62a8"), strict=True))

Json = dict[str, Any]
Points = NDArray[np.float64]


@dataclass(frozen=True)
class Match:
    """The pictures of one prompt and seed: from column ("base", "tuned", ...) to image path and to scores."""

    set: str
    prompt: str
    seed: int
    images: dict[str, str] = field(default_factory=dict)
    scores: dict[str, dict[str, float | None]] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """What the page is made from."""

    folder: Path
    config: Json
    metrics: list[Json]
    results: Json
    matches: list[Match]

    @property
    def sets(self) -> list[str]:
        """The evaluated sets, that of the training prompts first."""
        prompts = self.config["prompts"]
        train = prompts["name"] or Path(prompts.get("dataset") or Path(prompts["path"]).stem).name
        return sorted(self.results["sets"], key=lambda name: name != train)

    @property
    def scores(self) -> list[str]:
        """The evaluated rewards, without the guards."""
        names = dict.fromkeys(name for entries in self.results["sets"].values() for name in entries)
        return [name for name in names if name not in GUARDS]

    @property
    def trained(self) -> list[str]:
        """The evaluated rewards that were trained on."""
        named = {name_of(term) for term in self.config["rewards"] if term["weight"] != 0}
        return [name for name in self.scores if name in named]

    @property
    def other_settings(self) -> str:
        """What the pictures were made with and the training was not: `num_steps 2 (in training: 50)`."""
        made, own = self.results.get("config") or {}, self.config
        used = {**made.get("sampler", {}), "dtype": made.get("model", {}).get("dtype")}
        trained = {**own.get("sampler", {}), "dtype": own.get("model", {}).get("dtype")}
        names = [key for key in used if key != "batch_size" and used[key] not in (None, trained.get(key))]
        words = [f"{key} {used[key]} (in training: {trained.get(key)})" for key in names]
        first = made.get("evaluation", {}).get("seed", 0)
        return ", ".join([*words, *([f"seeds from {first}"] if first else [])])

    @property
    def pairs(self) -> list[Match]:
        """The matches that have both a base and a tuned picture."""
        return [match for match in self.matches if {"base", "tuned"} <= match.images.keys()]


def name_of(term: Json) -> str:
    return short_name(term["name"], term.get("label"))


def read(folder: Path) -> Run:
    """A run folder's config, metrics and, where there is one, evaluation."""
    evaluation = folder / "evaluation"
    found: dict[tuple[str, str, int], Match] = {}
    for line in metrics.read(evaluation / "samples.jsonl"):
        key = (line["set"], line["prompt"], line["seed"])
        match = found.setdefault(key, Match(*key))
        match.images[line["column"]], match.scores[line["column"]] = line["image"], line["scores"]
    results: Json = {"sets": {}}
    if (evaluation / "results.json").exists():
        results = json.loads((evaluation / "results.json").read_bytes())
        results["sets"] = json.loads(
            json.dumps(results["sets"]),
            object_hook=lambda found: {key: math.nan if v is None else v for key, v in found.items()},
        )
    config = yaml.safe_load((folder / "config.yaml").read_bytes())
    return Run(folder, config, metrics.read(folder / "metrics.jsonl"), results, list(found.values()))


def write(run_dir: Path) -> Path:
    """Write index.html, evaluation/curves.png and, with an evaluation, evaluation/before_after.png.

    A run without an evaluation gets a page of its curves and samples. Returns the page's path.
    """
    run, pictures = read(run_dir), run_dir / "evaluation"
    pictures.mkdir(exist_ok=True)
    if run.metrics:
        curves(run).savefig(pictures / "curves.png", dpi=130)
    if run.pairs:
        before_after(run).save(pictures / "before_after.png")
    files = [run_dir / "config.yaml", run_dir / "provenance.json"]
    texts = {file.stem: file.read_text("utf-8") for file in files if file.exists()}
    with whole(run_dir / "index.html") as aside:
        page = render("report.html.j2", run, samples=_training_samples(run_dir), texts=texts)
        aside.write_text(page, "utf-8")
    return run_dir / "index.html"


def render(template: str, run: Run, **values: Any) -> str:
    """The page or the card from the template beside this file."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), keep_trailing_newline=True,
        autoescape=jinja2.select_autoescape(["html.j2"]), trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"typeset": _typeset, "score": _score, "called": name_of}
    environment.filters["json"] = partial(json.dumps, indent=2)
    values |= {"run": run, "config": run.config, "name": run.folder.resolve().name, "alert": GUARD_ALERT}
    return environment.get_template(template).render(rows=rows(run), signs=signs(run), **values)


def sentence(set_name: str, reward: str, entry: Json) -> str:
    """A comparison in words, from one entry of results.json.

    `jpeg on animals: -3.20 -> -2.61 (+0.59, 95 % interval 0.52 to 0.66; better on 87 % of matched seeds)`
    """
    return (
        "{reward} on {set}: {base} -> {tuned} ({change}, 95 % interval {interval}; better on {win_rate} of "
        "matched seeds)"
    ).format(set=set_name, reward=reward, **_words(entry))


def _words(entry: Json) -> Json:
    """The numbers of one entry of results.json, as they are shown."""
    change = entry["difference"]
    digits = _digits(change)
    means = {column: _number(entry[column]["mean"], digits) for column in ("base", "tuned")}
    errors = {f"{column}_se": _number(entry[column]["se"], digits + 1) for column in ("base", "tuned")}
    return {
        **means, **errors, "change": _number(change["mean"], digits, "+"), "verdict": verdict(change),
        "interval": f"{_number(change['low'], digits)} to {_number(change['high'], digits)}",
        "win_rate": _number(100 * entry["win_rate"], 0, unit=" %"), "n": entry["base"]["n"],
    }  # fmt: skip


def verdict(difference: Json) -> str:
    """`rose` or `fell` where the interval leaves out 0, else `no clear change`."""
    if (difference["low"] or 0) > 0:
        return "rose"
    return "fell" if (difference["high"] or 0) < 0 else "no clear change"


def select(matches: Sequence[Match], set_name: str, count: int) -> list[Match]:
    """`count` prompts of a set, evenly spaced in the set's order, each with its lowest seed.

    With n prompts these are number 0, n / count, 2 n / count, ... (rounded down): no picture is chosen by its
    look or its score.
    """
    lowest: dict[str, Match] = {}
    for match in (match for match in matches if match.set == set_name):
        lowest[match.prompt] = min(lowest.get(match.prompt, match), match, key=lambda m: m.seed)
    chosen, count = list(lowest.values()), min(count, len(lowest))
    return [chosen[i * len(chosen) // count] for i in range(count)]


def before_after(run: Run) -> Image.Image:
    """One picture: base beside tuned for prompts of the training set and of the first held-out set."""
    judges = [name for name in run.scores if name not in run.trained]
    shown = [*run.trained[:1], *judges, *run.trained[1:]][:SCORES]
    columns, blocks = ("base", "tuned"), []
    for number, (set_name, count) in enumerate(zip(run.sets, (TRAIN_PROMPTS, HELDOUT_PROMPTS), strict=False)):
        note = "never trained on" if number else f"scores: {' / '.join(shown)}"
        chosen = select(run.pairs, set_name, count)
        for start in range(0, len(chosen), BLOCK):
            part = chosen[start : start + BLOCK]
            blocks.append(grid.table(
                [[Image.open(run.folder / "evaluation" / m.images[c]) for c in columns] for m in part],
                [match.prompt for match in part],
                columns,
                [[" / ".join(_score(m.scores[c].get(s)) for s in shown) for c in columns] for m in part],
                title=" \n " if start else f"{set_name}\n{note}",
            ))  # fmt: skip
    return grid.beside(blocks)


def curves(run: Run) -> Figure:
    """The training curves: reward, guards relative to their start, and the signs of a collapse."""
    figure = Figure(figsize=(11, 6), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.12, w_pad=0.08)  # pyright: ignore
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
    """reward/mean with a band of one standard deviation, and the evaluation of a reward trained alone."""
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
            y, error = ([entry[c][key] for c in ("base", "tuned")] for key in ("mean", "se"))
            style: Json = {"fmt": "o", "mfc": "white", "capsize": 3, "color": color}
            ax.errorbar((x[0] - 1, x[-1]), y, error, label=f"evaluation on {set_name}", **style)


def _line(ax: Axes, x: Points, y: Points, color: str, label: str | None) -> None:
    if len(x):
        ax.plot(x, y, color=color, label=label, linewidth=1.6, marker="." if len(x) < 30 else "")


def _series(run: Run, key: str) -> tuple[Points, Points]:
    """The iterations that recorded a finite value, and the values."""
    x, y = (np.array([line.get(name) for line in run.metrics], float) for name in ("iteration", key))
    return x[np.isfinite(y)], y[np.isfinite(y)]


def rows(run: Run) -> list[Json]:
    """The table of all sets and rewards; `heldout` is every set but the first."""
    return [
        {
            "set": name, "reward": reward, "trained": reward in run.trained, "heldout": number > 0,
            "sentence": sentence(name, reward, entry), **_words(entry),
        }
        for number, name in enumerate(run.sets)
        for reward, entry in run.results["sets"][name].items()
        if reward not in GUARDS
    ]  # fmt: skip


def signs(run: Run) -> list[Json]:
    """Signs of over-optimization: held-out prompts, judges, guards; `alert` marks the bad ones."""
    found, table = [], rows(run)
    gained = {row["reward"] for row in table if not row["heldout"] and row["verdict"] == "rose"}
    for row in table:
        if row["heldout"] or not row["trained"]:
            kind = "held-out prompts" if row["trained"] else "judge not trained on"
            lost = row["trained"] and row["reward"] in gained and row["verdict"] != "rose"
            text, alert = row["sentence"].partition(" (")[0], row["verdict"] == "fell" or lost
            found.append({"kind": kind, "text": text, "note": row["verdict"], "alert": alert})
    for name in GUARDS:
        columns = [np.array([m.scores[c][name] for m in run.pairs], float) for c in ("base", "tuned")]
        base, tuned = (stats.summary(column)["mean"] for column in columns)
        change, digits = (tuned - base) / base if base else math.nan, _digits(stats.paired(*columns))
        if not math.isnan(change):
            text = f"{name}: {_number(base, digits)} -> {_number(tuned, digits)}"
            note, alert = _number(100 * change, 0, "+", " %"), abs(change) >= GUARD_ALERT
            found.append({"kind": "guard", "text": text, "note": note, "alert": alert})
    return found


def _training_samples(run_dir: Path) -> list[tuple[int, list[str]]]:
    """Pictures of samples/ at a few evenly spaced iterations, the first number in a path."""
    found: dict[int, list[str]] = {}
    for path in sorted((run_dir / "samples").rglob("*.png")):
        name = path.relative_to(run_dir).as_posix()
        found.setdefault(int((re.findall(r"\d+", name) or [0])[0]), []).append(name)
    numbers = sorted(found)
    places = np.linspace(0, len(numbers) - 1, min(ITERATIONS, len(numbers))).round().astype(int)
    return [(numbers[i], found[numbers[i]][:PICTURES]) for i in places]


def _digits(difference: Json) -> int:
    """Decimals that give an interval two significant digits: 0.52 to 0.66, 12 to 15."""
    width = difference["high"] - difference["low"]
    return min(6, max(0, 1 - math.floor(math.log10(width)))) if width > 0 else 3


def _number(value: float, digits: int, sign: str = "", unit: str = "") -> str:
    return "n/a" if math.isnan(value) else f"{value:{sign}.{digits}f}{unit}"


def _score(value: float | None) -> str:
    """One picture's score, to about three digits."""
    size = abs(value or 0.0)
    digits = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3
    return _number(math.nan if value is None else value, digits)


def _typeset(text: str) -> str:
    """A true minus sign before numbers, and an arrow."""
    return re.sub(r"(?<![\w-])-(?=\d)", "−", text).replace("->", "→")
