"""What a run folder holds as evidence: its settings, metrics and matched pictures in words."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ddpo.evaluation import stats
from ddpo.media import GUARDS
from ddpo.records import metrics
from ddpo.rewards import short_name

GUARD_ALERT = 0.3
"""The relative change of a guard's mean, base to tuned, from which the page warns."""


Json = dict[str, Any]


@dataclass(frozen=True)
class Match:
    """The pictures of one prompt and seed: column ("base", "tuned", ...) to path and scores."""

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
    def columns(self) -> list[str]:
        """The evaluated columns, the reference first."""
        return self.results.get("columns") or ["base", "tuned"]

    @property
    def sets(self) -> list[str]:
        """The evaluated sets, that of the training prompts first."""
        prompts = self.config["prompts"]
        train = "+".join(map(_title, prompts.get("sets") or [prompts]))
        return sorted(self.results["sets"], key=lambda name: name != train)

    @property
    def scores(self) -> list[str]:
        """The evaluated rewards, without the guards."""
        names = dict.fromkeys(name for entries in self.results["sets"].values() for name in entries)
        return [name for name in names if name not in GUARDS]

    @property
    def guards(self) -> list[str]:
        """The guards of what the model makes."""
        return [g for g in GUARDS if any(g in m.scores[self.columns[0]] for m in self.pairs[:1])]

    @property
    def trained(self) -> list[str]:
        """The evaluated rewards that were trained on."""
        named = {name_of(term) for term in self.config["rewards"] if term["weight"] != 0}
        return [name for name in self.scores if name in named]

    @property
    def other_settings(self) -> str:
        """Settings in which pictures and training differ: `num_steps 2 (in training: 50)`."""
        made, own = self.results.get("config") or {}, self.config
        sampler = made.get("evaluation", {}).get("sampler") or made.get("sampler", {})
        used = {**sampler, "dtype": made.get("model", {}).get("dtype")}
        trained = {**own.get("sampler", {}), "dtype": own.get("model", {}).get("dtype")}
        names = [
            key for key in used if key != "batch_size" and used[key] not in (None, trained.get(key))
        ]
        words = [f"{key} {used[key]} (in training: {trained.get(key)})" for key in names]
        first = made.get("evaluation", {}).get("seed", 0)
        return ", ".join([*words, *([f"seeds from {first}"] if first else [])])

    @property
    def pairs(self) -> list[Match]:
        """The matches that have a picture in every column."""
        return [match for match in self.matches if {*self.columns} <= match.images.keys()]


def _title(source: Json) -> str:
    """The name of a prompt set, as it stands in results.json."""
    return source["name"] or Path(source.get("dataset") or Path(source["path"]).stem).name


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
            object_hook=lambda found: {
                key: math.nan if v is None else v for key, v in found.items()
            },
        )
    settings = folder / "config.yaml"  # which only a run has
    config = yaml.safe_load(settings.read_bytes()) if settings.is_file() else results["config"]
    return Run(
        folder, config, metrics.read(folder / "metrics.jsonl"), results, list(found.values())
    )


def sentence(set_name: str, reward: str, entry: Json) -> str:
    """A comparison in words, from one entry of results.json.

    `jpeg on animals: -3.20 -> -2.61 (+0.59, 95 % interval 0.52 to 0.66; better on 87 % of matched
    seeds)`
    """
    return (
        "{reward} on {set}: {base} -> {tuned} ({change}, 95 % interval {interval}; "
        "better on {win_rate} of matched seeds)"
    ).format(set=set_name, reward=reward, **_words(entry))


def _words(entry: Json) -> Json:
    """The numbers of one entry of results.json, as they are shown."""
    change = entry["difference"]
    digits = _digits(change)
    means = {column: _number(entry[column]["mean"], digits) for column in ("base", "tuned")}
    errors = {
        f"{column}_se": _number(entry[column]["se"], digits + 1) for column in ("base", "tuned")
    }
    return {
        **means,
        **errors,
        "change": _number(change["mean"], digits, "+"),
        "verdict": verdict(change),
        "interval": f"{_number(change['low'], digits)} to {_number(change['high'], digits)}",
        "win_rate": _number(100 * entry["win_rate"], 0, unit=" %"),
        "n": entry["base"]["n"],
    }


def verdict(difference: Json) -> str:
    """`rose` or `fell` where the interval leaves out 0, else `no clear change`."""
    if math.isnan(difference["low"] or 0):
        return "no interval"
    if (difference["low"] or 0) > 0:
        return "rose"
    return "fell" if (difference["high"] or 0) < 0 else "no clear change"


def select(matches: Sequence[Match], set_name: str, count: int) -> list[Match]:
    """`count` prompts of a set, evenly spaced in the set's order, each with its lowest seed.

    With n prompts these are number 0, n / count, 2 n / count, ... (rounded down): no picture is
    chosen by its look or its score.
    """
    lowest: dict[str, Match] = {}
    for match in (match for match in matches if match.set == set_name):
        lowest[match.prompt] = min(lowest.get(match.prompt, match), match, key=lambda m: m.seed)
    chosen, count = list(lowest.values()), min(count, len(lowest))
    return [chosen[i * len(chosen) // count] for i in range(count)]


def rows(run: Run) -> list[Json]:
    """The table of all sets, rewards and columns; `heldout` is every set but the first."""
    return [
        {
            "set": name,
            "reward": reward,
            "column": column,
            "trained": reward in run.trained,
            "heldout": number > 0,
            "sentence": sentence(name, reward, pair),
            **_words(pair),
        }
        for number, name in enumerate(run.sets)
        for reward, entry in run.results["sets"][name].items()
        if reward not in GUARDS
        for column, pair in pairs_of(entry, run.columns)
    ]


def pairs_of(entry: Json, columns: Sequence[str]) -> list[tuple[str, Json]]:
    """Each column beside the reference as an entry of two columns, `base` and `tuned`."""
    reference, *others = columns
    return [
        (column, {"base": entry[reference], "tuned": entry[column], **_compared(entry, column)})
        for column in others
        if reference in entry and column in entry
    ]


def _compared(entry: Json, column: str) -> Json:
    """The comparison of a column; before there were many of them it stood beside the two."""
    own = entry[column] if "difference" in entry[column] else entry
    return {key: own[key] for key in ("difference", "win_rate")}


def alone(run: Run) -> list[Json]:
    """The table of an evaluation of one column, which is compared with nothing."""
    if len(run.columns) != 1:
        return []
    (column,) = run.columns
    found = []
    for name in run.sets:
        for score, entry in run.results["sets"][name].items():
            if score not in GUARDS and column in entry:
                own, digits = entry[column], _digits_of(entry[column]["se"])
                mean, error = (_number(own[key], digits) for key in ("mean", "se"))
                found.append(
                    {"set": name, "score": score, "mean": mean, "se": error, "n": own["n"]}
                )
    return found


def tasks(run: Run) -> list[Json]:
    """By set, score and kind of prompts each column's mean, and last the mean over the kinds.

    The mean over tasks is GenEval's overall score. Guards are left out.
    """
    found = []
    for name, scores in run.results.get("tasks", {}).items():
        for score in (score for score in scores if score not in GUARDS):
            each, means = scores[score]["each"], scores[score]["mean"]
            lines = [
                (task, {c: entry[c]["mean"] for c in run.columns}) for task, entry in each.items()
            ]
            found += [
                {"set": name, "score": score, "task": task, "means": own, "overall": own is means}
                for task, own in [*lines, ("mean over tasks", means)]
            ]
    return found


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
    for name in run.guards if len(run.columns) > 1 else ():
        columns = [np.array([m.scores[c][name] for m in run.pairs], float) for c in run.columns[:2]]
        base, tuned = (stats.summary(column)["mean"] for column in columns)
        change = (tuned - base) / base if base else math.nan
        before, after = columns
        digits = _digits(stats.paired(before, after, [m.prompt for m in run.pairs]))
        if not math.isnan(change):
            text = f"{name}: {_number(base, digits)} -> {_number(tuned, digits)}"
            note, alert = _number(100 * change, 0, "+", " %"), abs(change) >= GUARD_ALERT
            found.append({"kind": "guard", "text": text, "note": note, "alert": alert})
    return found


def _digits(difference: Json) -> int:
    """Decimals that give an interval two significant digits: 0.52 to 0.66, 12 to 15."""
    return _digits_of(difference["high"] - difference["low"])


def _digits_of(width: float) -> int:
    """Decimals that give a width two significant digits; NaN: there is none."""
    return min(6, max(0, 1 - math.floor(math.log10(width)))) if width > 0 else 3


def _number(value: float, digits: int, sign: str = "", unit: str = "") -> str:
    return "n/a" if math.isnan(value) else f"{value:{sign}.{digits}f}{unit}"


def score_text(value: float | None) -> str:
    """One picture's score, to about three digits."""
    size = abs(value or 0.0)
    digits = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3
    return _number(math.nan if value is None else value, digits)
