"""The rule for over-optimization on real trainings: does it fire in time, and only then?

    python benchmarks/detector_runs.py run [--only noise]
    python benchmarks/detector_runs.py report

run     trains what is not yet in benchmarks/results/detector/: two runs that over-optimize, which
        the rule has to end before 30 points of recognition are lost, and two that do not, of which
        it has to keep silent. Where it fires, the run is rolled back, and it is looked at where
        that leaves it.
report  prints the table of these, and what the rule says of the study's runs, whose checkpoints
        are read as evaluations: how many points are lost when it fires, and false alarms.

The rule, and how often it fires by chance: ddpo/evaluation/overoptimization.py and detector.py.
"""

import argparse
import hashlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from ddpo import config, prompts
from ddpo.errors import Stopped
from ddpo.evaluation.overoptimization import Names, alarm
from ddpo.records import checkpoint
from ddpo.records.files import whole
from ddpo.runs.session import Session

sys.path.insert(0, str(Path(__file__).parent / "study"))
from study_measure import commit, text

RESULTS = Path(__file__).parent / "results"
JUDGE = "emoji_recognition"
LOST = 0.3
"""Of recognition, in all: the rule has to fire before."""

EVERY = ["--evaluation.every", "2", "--checkpoint.every", "2"]
ROLLBACK = ["--evaluation.on_over_optimization", "rollback", "--checkpoint.keep_last", "20"]
ANIMALS = ["--evaluation.prompts", "null", "--log.images", "0"]
LONG = ["--trainer.iterations", "30"]
RUNS = {
    "noise": [
        *("--config", "demo", "--rewards", "[{name: jpeg_incompressibility}]"),
        *(*LONG, "--trainer.lr", "1e-2", *EVERY, *ANIMALS, *ROLLBACK),
    ],
    "prdp": [
        *("--config", "demo", "--objective.name", "prdp", "--objective.clip_range", "1.6e-3"),
        *(*LONG, "--trainer.epochs", "2", *EVERY, *ANIMALS, *ROLLBACK),
    ],
    "demo": [
        *("--config", "demo", "--evaluation.every", "3", "--checkpoint.every", "3"),
        *("--log.images", "0", *ROLLBACK),
    ],
    "alignment_emoji": [
        *("--config", "alignment_emoji", "--evaluation.every", "10", "--checkpoint.every", "10"),
        *("--log.images", "0", *ROLLBACK),
    ],
}
"""Incompressibility at twice the demo's learning rate for twice as long, PRDP's arm of the study,
and the two configurations as they are, judged on their own held-out sets."""


class Followed(Session):
    """A training that remembers its evaluations, which a rollback takes back."""

    evaluations: list[dict[str, Any]]

    def react(self) -> None:
        self.evaluations = [*self.panel.rows]
        super().react()


def follow(name: str) -> dict[str, Any]:
    """One training to its end or to the rule's; what it was at each evaluation."""
    started = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        session = Followed(config.parse([*RUNS[name], "--run_dir", str(run_dir)]))
        line = ""
        try:
            session.train()
        except Stopped as error:
            line = str(error).partition(" (state saved")[0]
            if not line.startswith("over-optimization"):
                raise
        rows = session.evaluations
        found = alarm(rows, session.panel.names)
        newest = checkpoint.all_of(run_dir)[-1]
        return {
            "name": name,
            "flags": RUNS[name],
            "dtype": session.settings.model.dtype,
            "commit": commit(),
            "cpu_s": round(time.process_time() - started, 1),
            "fired": found and {"iteration": found.iteration, "good": found.good},
            "line": line,
            "left_at": int(newest.name),
            "lora_is_the_checkpoint": same(run_dir / "lora", newest),
            "evaluations": [{"iteration": row["iteration"], "means": row["means"]} for row in rows],
        }


def same(lora: Path, saved: Path) -> bool:
    """Whether the adapter's tensors are those of the checkpoint, whatever they are called."""
    mine, its = (
        hashes(load_file(path).values())
        for path in (lora / "pytorch_lora_weights.safetensors", saved / "parameters.safetensors")
    )
    return mine == its


def hashes(tensors: Iterable[Tensor]) -> list[str]:
    return sorted(hashlib.sha256(each.numpy().tobytes()).hexdigest() for each in tensors)


def report() -> None:
    """Two tables in Markdown: the runs of this file, and those of the study by their arms."""
    titles = "run | evaluations | recognized | fires at iteration | points lost then | left at"
    print(f"| {titles} |\n|{' --- |' * 6}")
    for name in RUNS:
        file = RESULTS / "detector" / f"{name}.json"
        if file.exists():
            print(row_of(json.loads(file.read_text(encoding="utf-8"))))
    print("\n| study's arm | runs | worst loss of points | fires in | points lost then |")
    print(f"|{' --- |' * 5}")
    arms: dict[str, list[tuple[float, float | None]]] = {}
    for file in sorted((RESULTS / "study").glob("[!.]*.*.*.json")):
        result = json.loads(file.read_text(encoding="utf-8"))
        arms.setdefault(f"{result['task']}.{result['arm']}", []).append(replayed(result))
    for arm, found in arms.items():
        worst = max(lost for lost, _ in found)
        fired = [at for _, at in found if at is not None]
        median = f"{100 * statistics.median(fired):.0f}" if fired else ""
        print(f"| {arm} | {len(found)} | {100 * worst:.0f} | {len(fired)} | {median} |")


def row_of(result: dict[str, Any]) -> str:
    """A run's line of the first table."""
    known = [each["means"][JUDGE] for each in result["evaluations"]]
    fired = result["fired"]
    cells = [result["name"], str(len(known)), f"{known[0]:.0%} -> {known[-1]:.0%}"]
    if fired:
        named = f"rolled back to checkpoint {fired['good']:06d}" in result["line"]
        right = named and result["left_at"] == fired["good"] and result["lora_is_the_checkpoint"]
        lost = f"{100 * (known[0] - known[-1]):.0f}"
        where = f"{result['left_at']}{', as the line says' if right else ', NOT as it should'}"
        cells += [str(fired["iteration"]), lost, where]
    else:
        cells += ["never", "", str(result["left_at"])]
    return f"| {' | '.join(cells)} |"


def replayed(result: dict[str, Any]) -> tuple[float, float | None]:
    """The largest loss of recognition on a run's way, and that when the rule fires; None: never."""
    texts = [prompt.text for prompt in prompts.load("animals") for _ in range(2)]
    looks = result["checkpoints"]
    reward = next(name for name in looks[0]["samples"] if name != JUDGE)
    names = Names({reward: 1.0}, [JUDGE], [*looks[0]["guards"]])
    lost = [looks[0]["means"]["animals"][JUDGE] - look["means"]["animals"][JUDGE] for look in looks]
    rows = []
    for look, now in zip(looks, lost, strict=True):
        guards = {name: [value] * len(texts) for name, value in look["guards"].items()}
        scores = {**look["samples"], **guards}
        rows.append({"iteration": look["iteration"], "prompts": texts, "scores": scores})
        if alarm(rows, names):
            return max(lost), now
    return max(lost), None


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("do", choices=("run", "report"))
    parser.add_argument("--only", choices=RUNS, help="this run alone")
    given = parser.parse_args()
    if given.do == "report":
        return report()
    for name in [given.only] if given.only else RUNS:
        file = RESULTS / "detector" / f"{name}.json"
        if not file.exists():
            result = follow(name)
            with whole(file) as aside:
                aside.write_text(text(result), encoding="utf-8")
            print(name, result["line"] or "the rule kept silent", flush=True)


if __name__ == "__main__":
    main()
