"""The papers' claims in the emoji world: `python benchmarks/study/study.py run`, then `report`.

run     makes the run that decides most for its time, then the next, until every check is decided,
        has eight seeds, or the study has cost its CPU-hours (claims that are refuted already get
        their further seeds last); one JSON a finished run, in
        benchmarks/results/study/. Stop it and start it again as you like, beside another one, too;
        `--runs 2` ends after two
next    says which run that would be, and how far the checks are
report  makes docs/results.md and its plots again from these JSONs
tune    tries each learning rate once, in tuning/ beside them (those that are there are of the older
        study, which kept the end alone); the better ones stand in TUNED of study_arms.py

Every arm of a task has the same number of reward queries and the same tuning budget: two learning
rates, tried once each at a seed that no result uses.
"""

import argparse
import fcntl
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import study_report
from study_arms import TUNING, Arm, planned
from study_claims import CLAIMS, refuted, rounds, sets_of
from study_decisions import BUDGETS, Named, Pool, next_run
from study_measure import measure, text

from ddpo.records.files import whole

RESULTS = Path(__file__).parents[1] / "results" / "study"
CPU_HOURS = 10.0
"""What all runs of the study may cost."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("do", choices=("run", "next", "report", "tune"))
    parser.add_argument("--runs", type=int, help="make so many and end; left out: all")
    arguments = parser.parse_args()
    logging.basicConfig(format="%(message)s")
    if arguments.do == "report":
        study_report.write(load(RESULTS), RESULTS)
    elif arguments.do == "next":
        tell(load(RESULTS))
    elif arguments.do == "tune":
        for run in TUNING:
            make(run, RESULTS / "tuning")
    else:
        made = 0
        while (arguments.runs is None or made < arguments.runs) and one_more():
            made += 1


def load(folder: Path) -> Pool:
    """All finished runs of the study."""
    pool: Pool = {}
    for file in sorted(folder.glob("[!.]*.*.*.json")):
        result = json.loads(file.read_text(encoding="utf-8"))
        pool.setdefault((result["task"], result["arm"]), {})[result["seed"]] = result
    return pool


def hours(pool: Pool) -> float:
    return sum(result["cpu_s"] for seeds in pool.values() for result in seeds.values()) / 3600


def one_more() -> bool:
    """Make the next run that no other process makes; False where there is none."""
    busy: set[Named] = set()
    while True:
        pool = load(RESULTS)
        if hours(pool) >= CPU_HOURS:
            print(f"the study has cost its {CPU_HOURS:g} CPU-hours", flush=True)
            return False
        named = next_run(rounds(), pool, busy, refuted(pool))
        if named is None:
            return False
        if make(planned(*named)):
            return True
        busy.add(named)


def make(run: Arm, folder: Path = RESULTS) -> bool:
    """Measure a run and write its file; False where it is there, or another process is at it."""
    file = folder / f"{run.name}.json"
    folder.mkdir(parents=True, exist_ok=True)
    with claimed(file.with_name(f"{run.name}.running")) as mine:
        if not mine or file.exists():
            return False
        print(run.name, "begins", flush=True)
        result = measure(run, sets_of(run.task, run.arm))
        with whole(file) as aside:
            aside.write_text(text(result), encoding="utf-8")
        print(run.name, "done", flush=True)
    return True


@contextmanager
def claimed(file: Path) -> Iterator[bool]:
    """Whether this process alone is at it; a process that dies gives it up."""
    with open(file, "w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        try:
            yield True
        finally:
            file.unlink(missing_ok=True)


def tell(pool: Pool) -> None:
    """Every check with its seeds, and the next run."""
    for claim in CLAIMS:
        for check in claim.checks:
            found = [check.verdict(pool, budget) for budget in BUDGETS]
            words = ", ".join(
                f"{each.word} at equal {budget} ({each.seeds} seeds)"
                for each, budget in zip(found, BUDGETS, strict=True)
            )
            print(f"{claim.number} {check.task}: {check.words}: {words}")
    print(f"{sum(map(len, pool.values()))} runs, {hours(pool):.1f} CPU-hours")
    print("next:", next_run(rounds(), pool, late=refuted(pool)) or "none")


if __name__ == "__main__":
    main()
