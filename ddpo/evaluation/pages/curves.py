"""The charts of a run: its training, and how the scores of its evaluation are spread."""

import math
from collections.abc import Sequence

from markupsafe import Markup

from ddpo.evaluation.evidence import Json, Run, name_of
from ddpo.evaluation.pages.charts import Series, chart, histogram
from ddpo.media import GUARDS
from ddpo.records import metrics

SPREAD = {
    "kl": "KL to the base, in nats",
    "distance_within": "distance within a prompt",
    "vendi_within": "Vendi score within a prompt",
    "distance": "distance over all",
    "vendi": "Vendi score over all",
    "cmmd": "CMMD to the reference",
}
"""What is measured of a column besides its scores, and what a page calls it."""

HISTOGRAMS = 6
"""Histograms at most: of each score on the first set."""


def curves(run: Run) -> list[Markup]:
    """The training: rewards, evaluations on the way, guards, and the signs of a collapse."""
    names = [name_of(term) for term in run.config.get("rewards", [])]
    found = [_reward(run)]
    if len(names) > 1:
        every = [_series(run, f"reward/{name}", name) for name in names]
        found.append(chart("each reward, unweighted", every))
    found += _on_the_way(run)
    guards = [_relative(_series(run, f"guard/{name}", name)) for name in GUARDS]
    if known := [guard for guard in guards if guard.x]:
        found.append(chart("guards, relative to their start", known))
    for key in ("kl_ref", "approx_kl", "ratio/max_dev", "clip_frac", "grad_norm"):
        if (series := _series(run, key, key)).x:
            found.append(chart(key, [series], zero=True))
    return found


def spreads(run: Run) -> list[Json]:
    """For each set and column how varied its samples are, and how far from the reference's."""
    rows = []
    for name, columns in (run.results.get("spread") or {}).items():
        for column, entry in columns.items():
            kl = entry.get("kl") or {}
            values = {**entry, "kl": kl.get("mean")}
            known = {k: v for k in SPREAD if (v := values.get(k)) is not None and math.isfinite(v)}
            if known:
                rows.append({"set": name, "column": column, "found": known})
    return rows


def histograms(run: Run) -> list[Markup]:
    """Of each score on the set of the training prompts, every column."""
    if not run.sets:
        return []
    matches = [match for match in run.matches if match.set == run.sets[0]]
    found = []
    for name in run.scores[:HISTOGRAMS]:
        columns = {
            column: [
                math.nan if value is None else value
                for match in matches
                if column in match.scores
                for value in [match.scores[column].get(name)]
            ]
            for column in run.columns
        }
        found.append(histogram(f"{name} on {run.sets[0]}", columns))
    return found


def _reward(run: Run) -> Markup:
    """reward/mean with a band of one standard deviation."""
    mean = _series(run, "reward/mean", "reward/mean")
    spread = {row["iteration"]: row.get("reward/std") or 0.0 for row in run.metrics}
    low = [y - spread[x] for x, y in zip(mean.x, mean.y, strict=True)]
    high = [y + spread[x] for x, y in zip(mean.x, mean.y, strict=True)]
    banded = Series(mean.label, mean.x, mean.y, low, high)
    return chart("reward/mean, band: one standard deviation", [banded])


def evaluations(run: Run) -> list[Json]:
    """The evaluations of a run on its way: {"iteration", "eval/<name>": mean, ...} each.

    From evaluations.jsonl, which begins before the first update, or else from the metrics.
    """
    rows = metrics.read(run.folder / "evaluations.jsonl")
    if rows:
        names = [(row, {f"eval/{k}": v for k, v in row["means"].items()}) for row in rows]
        return [{"iteration": row["iteration"]} | means for row, means in names]
    kept = [{k: v for k, v in row.items() if k[:5] == "eval/"} for row in run.metrics]
    both = zip(run.metrics, kept, strict=True)
    return [{"iteration": row["iteration"]} | means for row, means in both if means]


def _on_the_way(run: Run) -> list[Markup]:
    """What the evaluations measured over the iterations, and each judge over the trained reward
    and over the KL to the base."""
    rows = evaluations(run)
    keys = [k for k in dict.fromkeys(k for row in rows for k in row) if k != "iteration"]
    shown = [key for key in keys if key.removeprefix("eval/") not in GUARDS]
    found = []
    for key in shown:
        own = _points(rows, "iteration", key)
        found.append(chart(f"{key}, on the way", [own]))
    trained = [f"eval/{name_of(t)}" for t in run.config.get("rewards", []) if t["weight"] != 0]
    measured = [f"eval/{name}" for name in SPREAD]
    judges = [key for key in shown if key not in [*trained, *measured]]
    for x in [key for key in [*trained[:1], "eval/kl"] if key in shown]:
        for y in judges:
            line = _points(rows, x, y)
            found.append(chart(f"{y} over {x}", [line], x_label=x, y_label=y, kind="front"))
    return found


def _points(rows: Sequence[Json], x: str, y: str) -> Series:
    kept = [row for row in rows if row.get(x) is not None and row.get(y) is not None]
    names = [f"iteration {row['iteration']}" for row in kept]
    return Series(y, [row[x] for row in kept], [row[y] for row in kept], names=names)


def _series(run: Run, key: str, label: str) -> Series:
    """The iterations that recorded a value, and the values."""
    kept = [row for row in run.metrics if isinstance(row.get(key), int | float)]
    return Series(label, [row["iteration"] for row in kept], [float(row[key]) for row in kept])


def _relative(series: Series) -> Series:
    """Divided by its first value; nothing where that is 0."""
    if not series.y or not series.y[0]:
        return Series(series.label, [], [])
    return Series(series.label, series.x, [value / series.y[0] for value in series.y])
