"""The papers' claims in the emoji world: `python benchmarks/study/study.py tune`, then `run`, then
`report`.

tune    tries each learning rate once; the better ones stand in TUNED of study_arms.py
run     makes what is not yet in benchmarks/results/, one JSON a finished run; stop it and start it
        again as you like; `--only 'compress.ddpo.*'` takes the runs of such names, `--reverse`
        begins at the other end
report  makes docs/results.md and its plots again from these JSONs

Every arm of a task has the same number of reward queries and the same tuning budget: two learning
rates, tried once each at a seed that no result uses.
"""

import argparse
import json
import logging
import subprocess
import tempfile
import time
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import study_report
from study_arms import RUNS, TUNING, Arm, flags

from ddpo import config, prompts
from ddpo.errors import Stopped
from ddpo.evaluation import matched
from ddpo.evaluation.stats import paired
from ddpo.records import metrics
from ddpo.runs import folder as run_folder
from ddpo.runs.session import Session

RESULTS = Path(__file__).parents[1] / "results"
SETS = ("animals", "animals_heldout", "activities_heldout")
KEPT = (
    "iteration",
    "images_seen",
    "reward/mean",
    "reward/std",
    "kl_ref",
    "approx_kl",
    "clip_frac",
    "ratio/max_dev",
    "grad_norm",
    "objective/ess",
    "guard/edge_density",
    "skipped_steps",
    "time/total",
)

BASE: dict[tuple[str, str], list[matched.Shot]] = {}
"""The pretrained model's pictures by task and prompt set: the same for every run."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("do", choices=("tune", "run", "report"))
    parser.add_argument("--only", default="*", help="runs with such names, as compress.prdp.*")
    parser.add_argument(
        "--reverse", action="store_true", help="for a second process beside the first"
    )
    arguments = parser.parse_args()
    if arguments.do == "report":
        study_report.write(RESULTS)
        return
    logging.basicConfig(format="%(message)s")
    runs_of = {"tune": TUNING, "run": RUNS}
    RESULTS.mkdir(exist_ok=True)
    wanted = [run for run in runs_of[arguments.do] if fnmatch(run.name, arguments.only)]
    for run in reversed(wanted) if arguments.reverse else wanted:
        file, claimed = RESULTS / f"{run.name}.json", RESULTS / f"{run.name}.running"
        if file.exists() or claimed.exists():
            continue
        claimed.touch()
        try:
            file.write_text(json.dumps(measure(run), indent=1) + "\n", encoding="utf-8")
        finally:
            claimed.unlink()
        print(run.name, "done", flush=True)


def measure(run: Arm) -> dict[str, Any]:
    """One run from the pretrained model to the comparison at fixed seeds, before and after."""
    started = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        settings = config.parse([*flags(run), "--run_dir", f"{folder}/run"])
        session, stopped = Session(settings), None
        try:
            session.train()
        except Stopped as error:
            if str(error).startswith("stopped after"):  # a signal: the run is not finished
                raise SystemExit(3) from error
            stopped = str(error).partition(" (state saved")[0]
        rows = metrics.read(Path(folder) / "run" / "metrics.jsonl")
        trained = time.process_time() - started
        final = {name: compare(session, run.task, name) for name in SETS}
    return {
        "name": run.name,
        "task": run.task,
        "arm": run.arm,
        "seed": run.seed,
        "lr": run.lr,
        "flags": flags(run),
        "commit": commit(),
        "versions": run_folder.versions(),
        "stopped": stopped,
        "train_cpu_s": round(trained, 1),
        "cpu_s": round(time.process_time() - started, 1),
        "curve": [{key: row[key] for key in KEPT if key in row} for row in rows],
        "final": final,
    }


def compare(session: Session, task: str, name: str) -> dict[str, dict[str, float]]:
    """Of every judge: means before and after at the same seeds, two pictures a prompt, and the
    difference."""
    asked = (session.trainer.policy, session.trainer.sampler, prompts.load(name), 2, session.judges)
    if (task, name) not in BASE:
        with session.trainer.policy.weights("base"):
            BASE[task, name] = matched.all_shots(*asked)
    tuned, found = matched.all_shots(*asked), {}
    for judge in session.judges:
        before, after = (
            [shot.scores[judge.name] for shot in shots] for shots in (BASE[task, name], tuned)
        )
        found[judge.name] = {
            "base": sum(before) / len(before),
            "tuned": sum(after) / len(after),
            "n": len(before),
            **paired(before, after),
        }
    return found


def commit() -> str:
    """Of the code that ran, with a mark where the tree differs from it."""
    git = ["git", "-C", str(Path(__file__).parent)]
    where = ["--", "../../ddpo", "../../rewards", "../../configs", ".."]
    known = subprocess.run(
        [*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    changed = subprocess.run([*git, "diff", "--quiet", "HEAD", *where]).returncode
    return known + ("+" if changed else "")


if __name__ == "__main__":
    main()
