"""Several runs on one page: what each gained for its queries, its time and its distance from the
base, and what the judges say of it.

Runs whose settings differ in the seed alone are one line, with an interval over the seeds.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import NormalDist, fmean, stdev
from typing import Any

from markupsafe import Markup

from ddpo import config
from ddpo.errors import UserError
from ddpo.evaluation import templates
from ddpo.evaluation.evidence import Json, Run, name_of, read
from ddpo.evaluation.pages import gallery, together
from ddpo.evaluation.pages.charts import Series, chart
from ddpo.evaluation.pages.curves import SPREAD, evaluations
from ddpo.media import GUARDS
from ddpo.records.files import whole

SEED_ALONE = ("seed", "run_dir")
"""What runs of one group may differ in."""

OURS = {"index.html", "evaluation"}
"""What a comparison writes."""


@dataclass(frozen=True)
class Group:
    """Runs that differ in the seed alone. Its label is that of its first run."""

    label: str
    runs: tuple[Run, ...]


def write(folders: Sequence[str], out: Path) -> Path:
    """Write the page of a comparison and the samples that it shows into `out`.

    Raises UserError for a folder of no run, for one that is given twice, and where `out` holds
    anything else.
    """
    labels = _labels(folders)
    _check_out(out)
    groups = grouped({label: read(Path(f)) for label, f in zip(labels, folders, strict=True)})
    runs = {label: run for group in groups for label, run in _members(group, labels, folders)}
    with whole(out / "evaluation") as aside:
        aside.mkdir()
        columns, matches = together.samples(runs, aside)
        gallery.write_small(aside, matches)
    scores = list(dict.fromkeys(score for run in runs.values() for score in run.scores))
    with whole(out / "index.html") as aside:
        text = (
            templates.environment()
            .get_template("compare.html.j2")
            .render(
                groups=groups,
                differences=differences(groups),
                curves=curves(groups),
                fronts=fronts(groups),
                rows=results(groups),
                columns=columns,
                scores=scores,
                trained=groups[0].runs[0].trained,
                cards=gallery.cards(out / "evaluation", matches, columns, scores),
            )
        )
        aside.write_text(text, "utf-8")
    return out / "index.html"


def grouped(runs: Mapping[str, Run]) -> list[Group]:
    """The runs by their settings, in the order in which they were named."""
    found: dict[str, list[tuple[str, Run]]] = {}
    for label, run in runs.items():
        own = {k: v for k, v in run.config.items() if k not in SEED_ALONE}
        found.setdefault(json.dumps(own, sort_keys=True), []).append((label, run))
    return [
        Group(_with_seeds(members), tuple(run for _, run in members)) for members in found.values()
    ]


def differences(groups: Sequence[Group]) -> list[tuple[str, list[Any]]]:
    """The options in which the groups differ, each with the groups' values."""
    flat = [_flat(group.runs[0].config) for group in groups]
    names = dict.fromkeys(name for each in flat for name in each)
    rows = [(name, [each.get(name) for each in flat]) for name in names if name not in SEED_ALONE]
    return [(name, values) for name, values in rows if any(a != b for a, b in pairwise(values))]


def curves(groups: Sequence[Group]) -> list[tuple[str, list[Markup]]]:
    """For each reward that was recorded, three charts: over queries, time and KL."""
    keys = dict.fromkeys(
        key for group in groups for run in group.runs for row in run.metrics for key in row
    )
    named = [k for k in keys if k.startswith(("reward/", "eval/"))]
    skipped = ("reward/std", "reward/missing", "reward/gated")
    found = []
    for key in [key for key in named if key not in skipped]:
        drawn = [_over(groups, key, label, of) for label, of in AXES.items()]
        found.append((key, drawn))
    return found


def fronts(groups: Sequence[Group]) -> list[Markup]:
    """Each judge over each trained reward, one point for each evaluation on the way."""
    runs = [run for group in groups for run in group.runs]
    trained = dict.fromkeys(
        f"eval/{name_of(t)}" for run in runs for t in run.config["rewards"] if t["weight"] != 0
    )
    keys = dict.fromkeys(key for run in runs for row in evaluations(run) for key in row)
    beside = {"iteration", *(f"eval/{name}" for name in (*SPREAD, *GUARDS))}
    found = []
    for x in [key for key in trained if key in keys]:
        for y in [key for key in keys if key not in trained and key not in beside]:
            series = [
                _joined(group, i, partial(_column, key=x), y) for i, group in enumerate(groups)
            ]
            found.append(chart(f"{y} over {x}", series, x_label=x, y_label=y, kind="front"))
    return found


def results(groups: Sequence[Group]) -> list[Json]:
    """For each group, set and reward the difference to the base at the end.

    Of one run the interval is that of its evaluation; of several the t interval of their
    differences.
    """
    found = []
    for group in groups:
        done = [run for run in group.runs if run.results["sets"]]
        for name in dict.fromkeys(name for run in done for name in run.sets):
            for reward in dict.fromkeys(score for run in done for score in run.scores):
                entries = [run.results["sets"].get(name, {}).get(reward) for run in done]
                if changes := [e["difference"] for e in entries if e and "difference" in e]:
                    row = {"group": group.label, "set": name, "reward": reward, "n": len(changes)}
                    row["trained"] = reward in done[0].trained
                    found.append(row | _interval(changes))
    return found


def _interval(changes: Sequence[Json]) -> Json:
    if len(changes) == 1:
        return {key: changes[0][key] for key in ("mean", "low", "high")}
    means = [change["mean"] for change in changes]
    half = _half_width(means)
    return {"mean": fmean(means), "low": fmean(means) - half, "high": fmean(means) + half}


def _half_width(values: Sequence[float]) -> float:
    """Half of the 95 % t interval of a mean."""
    return student_t(len(values) - 1) * stdev(values) / len(values) ** 0.5


def student_t(freedom: int) -> float:
    """The 97.5 % quantile of Student's t: exact to three digits.

    From five degrees on by the expansion in 1 / freedom (Abramowitz and Stegun 1964, 26.7.5).
    """
    if freedom < 5:
        return (12.7062, 4.30265, 3.18245, 2.77645)[freedom - 1]
    z, v = NormalDist().inv_cdf(0.975), freedom
    first = (z**3 + z) / (4 * v)
    second = (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
    return z + first + second + third


def _column(run: Run, key: str) -> dict[int, float]:
    """One metric, or one measure of the evaluations on the way, by iteration."""
    rows = evaluations(run) if key.startswith("eval/") else run.metrics
    return {
        row["iteration"]: float(row[key]) for row in rows if isinstance(row.get(key), int | float)
    }


def _hours(run: Run) -> dict[int, float]:
    """Hours of all processes since the start, each iteration's end."""
    origin = run.folder / "provenance.json"
    told = json.loads(origin.read_bytes()) if origin.is_file() else {}
    processes, seconds, found = told.get("num_processes", 1), 0.0, {}
    for row in run.metrics:
        seconds += row.get("time/total") or 0.0
        found[row["iteration"]] = processes * seconds / 3600
    return found


AXES: dict[str, Callable[[Run], dict[int, float]]] = {
    "reward queries": lambda run: _column(run, "images_seen"),
    "wall-clock hours × processes": _hours,
    "kl_ref": lambda run: _column(run, "kl_ref"),
}
"""What the charts have across."""


def _over(
    groups: Sequence[Group], key: str, label: str, of: Callable[[Run], dict[int, float]]
) -> Markup:
    series = [_joined(group, i, of, key) for i, group in enumerate(groups)]
    kind = "front" if label == "kl_ref" else "line"
    return chart(f"{key} over {label}", series, x_label=label, y_label="", kind=kind)


def _joined(
    group: Group, color: int, across: Callable[[Run], dict[int, float]], key: str
) -> Series:
    """The means over a group's seeds at each iteration that all have, with their interval."""
    xs, ys = [across(run) for run in group.runs], [_column(run, key) for run in group.runs]
    iterations = sorted(set.intersection(*({*each} for each in [*xs, *ys])))
    x = [fmean(each[i] for each in xs) for i in iterations]
    values = [[each[i] for each in ys] for i in iterations]
    series = Series(group.label, x, [*map(fmean, values)], color=color)
    series = replace(series, names=[f"iteration {i}" for i in iterations])
    if len(group.runs) == 1:
        return series
    halves = [_half_width(each) for each in values]
    low = [y - half for y, half in zip(series.y, halves, strict=True)]
    high = [y + half for y, half in zip(series.y, halves, strict=True)]
    return replace(series, low=low, high=high)


def _labels(folders: Sequence[str]) -> list[str]:
    """The runs' names, or their paths where two have one name."""
    for folder in folders:
        config.of_run(folder)
    paths = [Path(folder).resolve() for folder in folders]
    for path in paths:
        if paths.count(path) > 1:
            raise UserError(f"compare: {path.name} is given twice; name each run once")
    names = [path.name for path in paths]
    return [n if names.count(n) == 1 else str(f) for n, f in zip(names, folders, strict=True)]


def _with_seeds(members: Sequence[tuple[str, Run]]) -> str:
    first = members[0][0]
    return first if len(members) == 1 else f"{first} ({len(members)} seeds)"


def _members(group: Group, labels: Sequence[str], folders: Sequence[str]) -> list[tuple[str, Run]]:
    names = {Path(folder): label for label, folder in zip(labels, folders, strict=True)}
    return [(names[run.folder], run) for run in group.runs]


def _check_out(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file; name a folder")
    if out.is_dir() and not {path.name for path in out.iterdir()} <= OURS:
        raise UserError(f"--out {out}: holds something else; name a new folder")
    if (out / "config.yaml").exists():
        raise UserError(f"--out {out}: holds a run; name a new folder")


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Nested mappings by dotted names."""
    if not isinstance(value, dict):
        return {name: value}
    return {k: v for key in value for k, v in _flat(value[key], f"{name}.{key}".strip(".")).items()}
