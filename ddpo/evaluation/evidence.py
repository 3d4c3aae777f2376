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
from ddpo.images import GUARDS
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
        """Settings in which pictures and training differ: `num_steps 2 (in training: 50)`."""
        made, own = self.results.get("config") or {}, self.config
        used = {**made.get("sampler", {}), "dtype": made.get("model", {}).get("dtype")}
        trained = {**own.get("sampler", {}), "dtype": own.get("model", {}).get("dtype")}
        names = [
            key for key in used if key != "batch_size" and used[key] not in (None, trained.get(key))
        ]
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
            object_hook=lambda found: {
                key: math.nan if v is None else v for key, v in found.items()
            },
        )
    config = yaml.safe_load((folder / "config.yaml").read_bytes())
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
    """The table of all sets and rewards; `heldout` is every set but the first."""
    return [
        {
            "set": name,
            "reward": reward,
            "trained": reward in run.trained,
            "heldout": number > 0,
            "sentence": sentence(name, reward, entry),
            **_words(entry),
        }
        for number, name in enumerate(run.sets)
        for reward, entry in run.results["sets"][name].items()
        if reward not in GUARDS
    ]


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
        columns = [
            np.array([m.scores[c][name] for m in run.pairs], float) for c in ("base", "tuned")
        ]
        base, tuned = (stats.summary(column)["mean"] for column in columns)
        change = (tuned - base) / base if base else math.nan
        digits = _digits(stats.paired(*columns))
        if not math.isnan(change):
            text = f"{name}: {_number(base, digits)} -> {_number(tuned, digits)}"
            note, alert = _number(100 * change, 0, "+", " %"), abs(change) >= GUARD_ALERT
            found.append({"kind": "guard", "text": text, "note": note, "alert": alert})
    return found


def _digits(difference: Json) -> int:
    """Decimals that give an interval two significant digits: 0.52 to 0.66, 12 to 15."""
    width = difference["high"] - difference["low"]
    return min(6, max(0, 1 - math.floor(math.log10(width)))) if width > 0 else 3


def _number(value: float, digits: int, sign: str = "", unit: str = "") -> str:
    return "n/a" if math.isnan(value) else f"{value:{sign}.{digits}f}{unit}"


def score_text(value: float | None) -> str:
    """One picture's score, to about three digits."""
    size = abs(value or 0.0)
    digits = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3
    return _number(math.nan if value is None else value, digits)
