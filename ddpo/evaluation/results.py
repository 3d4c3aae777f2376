"""What an evaluation's samples say, from samples.jsonl alone: means, differences, gains per prompt.

`summarize` is the one place where results.json and the tables get their numbers; a row of
samples.jsonl reads {"set", "prompt", "seed", "column", "image", "scores": {name: value}}.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from safetensors.numpy import load_file

from ddpo.evaluation import spread, stats
from ddpo.records import metrics

Row = Mapping[str, Any]

FEATURES = "features.safetensors"
"""Of all samples, in the order of samples.jsonl: by which diversity is measured."""

BINS = 20
"""Of a histogram."""


def recompute(folder: Path) -> dict[str, Any]:
    """`summarize` of an evaluation's folder."""
    features = folder / FEATURES
    known = load_file(features)["features"] if features.is_file() else None
    return summarize(metrics.read(folder / "samples.jsonl"), features=known)


def summarize(
    rows: Sequence[Row],
    columns: Sequence[str] | None = None,
    features: Float[NDArray[np.float32], "rows d"] | None = None,
) -> dict[str, Any]:
    """{"columns", "sets": {set: {score: entry}}, "histograms", "spread", "tasks"} of the rows.

    The first column is the reference. An entry has, by column, mean, standard error and n, and for
    every column but the reference its `difference` to that, paired by prompt and seed, with the 95
    % interval over prompts, and its `win_rate`. An entry's own `difference` and `win_rate` are
    those of the first column after the reference. `spread` has by set and column the KL to the base
    of the trajectories of which it was measured and, with `features` of all rows, diversity and the
    distance in distribution to the reference, as ddpo.evaluation.spread has them. `tasks` has, of
    sets whose prompts are of several kinds, {set: {score: {"each": {task: entry}, "mean": {column:
    the mean over tasks}}}}.
    """
    columns = list(columns or dict.fromkeys(row["column"] for row in rows))
    sets: dict[str, Any] = {}
    histograms: dict[str, Any] = {}
    spreads: dict[str, Any] = {}
    tasks: dict[str, Any] = {}
    for name in dict.fromkeys(row["set"] for row in rows):
        own = [row for row in rows if row["set"] == name]
        scores = dict.fromkeys(score for row in own for score in row["scores"])
        tables = {score: Table(own, columns, score) for score in scores}
        sets[name] = {score: table.entry() for score, table in tables.items()}
        histograms[name] = {score: table.histogram() for score, table in tables.items()}
        at = [i for i, row in enumerate(rows) if row["set"] == name]
        spreads[name] = _spread(own, columns, None if features is None else features[at])
        if any(row.get("task") for row in own):
            tasks[name] = {score: _by_task(own, columns, score) for score in scores}
    found = {"columns": columns, "sets": sets, "histograms": histograms, "spread": spreads}
    return {**found, "tasks": tasks}


def _by_task(rows: Sequence[Row], columns: Sequence[str], score: str) -> dict[str, Any]:
    """One score of one set, by the kind of the prompts; those of none are left out."""
    kinds = dict.fromkeys(row["task"] for row in rows if row.get("task"))
    each = {
        kind: Table([row for row in rows if row.get("task") == kind], columns, score).entry()
        for kind in kinds
    }
    means = {
        column: float(np.mean([entry[column]["mean"] for entry in each.values()]))
        for column in columns
    }
    return {"each": each, "mean": means}


def _spread(
    rows: Sequence[Row], columns: Sequence[str], features: NDArray[np.float32] | None
) -> dict[str, Any]:
    """Of one set, by column."""
    found: dict[str, Any] = {}
    places = {c: [i for i, row in enumerate(rows) if row["column"] == c] for c in columns}
    for column, at in places.items():
        prompts = [str(rows[i]["prompt"]) for i in at]
        kl = [math.nan if rows[i].get("kl") is None else rows[i]["kl"] for i in at]
        found[column] = {"kl": stats.summary(kl, prompts)}
        if features is not None:
            own, base = (features[each].astype(np.float64) for each in (at, places[columns[0]]))
            found[column] |= spread.diversity(own, prompts)
            if column != columns[0]:
                found[column]["cmmd"] = spread.cmmd(own, base)
    return found


class Table:
    """One score of one set: a value (NaN: none) for each column and each (prompt, seed).

    prompts  of the rows, in the order of the first column
    values   by column, as many
    """

    def __init__(self, rows: Sequence[Row], columns: Sequence[str], score: str) -> None:
        found: dict[tuple[str, int], dict[str, float]] = {}
        for row in rows:
            value = row["scores"].get(score)
            place = found.setdefault((row["prompt"], row["seed"]), {})
            place[row["column"]] = math.nan if value is None else float(value)
        self.columns, self.prompts = list(columns), [prompt for prompt, _ in found]
        self.values = {
            column: np.array([each.get(column, math.nan) for each in found.values()])
            for column in columns
        }

    def entry(self) -> dict[str, Any]:
        """What results.json has of it."""
        reference, *others = self.columns
        base = self.values[reference]
        entry: dict[str, Any] = {reference: stats.summary(base, self.prompts)}
        for column in others:
            own = self.values[column]
            compared = {
                "difference": stats.paired(base, own, self.prompts),
                "win_rate": stats.win_rate(base, own),
            }
            entry[column] = {**stats.summary(own, self.prompts), **compared}
        return entry | {key: entry[others[0]][key] for key in COMPARED if others}

    def histogram(self) -> dict[str, Any]:
        """The counts of each column's values between common edges; without a value there are none.

        {"edges": 21 numbers, column: 20 counts}.
        """
        known = np.concatenate([each[np.isfinite(each)] for each in self.values.values()])
        if not len(known):
            return {"edges": [], **{column: [] for column in self.columns}}
        edges = np.histogram_bin_edges(known, BINS)
        counts = {
            column: np.histogram(each[np.isfinite(each)], edges)[0].tolist()
            for column, each in self.values.items()
        }
        return {"edges": edges.tolist(), **counts}

    def gains(self, column: str) -> list[dict[str, Any]]:
        """Per prompt the two means, their difference and the pairs; the largest gain first.

        Prompts without a pair are left out.
        """
        base, own = self.values[self.columns[0]], self.values[column]
        known = ~np.isnan(base - own)
        places: dict[str, list[int]] = {}
        for i in np.flatnonzero(known):
            places.setdefault(self.prompts[i], []).append(int(i))
        rows = []
        for prompt, at in places.items():
            before, after = float(base[at].mean()), float(own[at].mean())
            row = {"prompt": prompt, "reference": before, "value": after, "gain": after - before}
            rows.append({**row, "n": len(at)})
        return sorted(rows, key=lambda row: -row["gain"])


COMPARED = ("difference", "win_rate")
"""What an entry has of a column beside the reference."""

NOT_COLUMNS = {*COMPARED, "edges", "low", "high", "mean", "se", "n"}
"""No column may have such a name."""


def gains(rows: Sequence[Row], columns: Sequence[str]) -> list[dict[str, Any]]:
    """The table of all prompts, scores and columns: prompts.csv."""
    found = []
    for name in dict.fromkeys(row["set"] for row in rows):
        own = [row for row in rows if row["set"] == name]
        for score in dict.fromkeys(score for row in own for score in row["scores"]):
            table = Table(own, columns, score)
            found += [
                {"set": name, "score": score, "column": column, **row}
                for column in columns[1:]
                for row in table.gains(column)
            ]
    return found
