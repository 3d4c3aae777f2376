"""One run of the study: a training that is evaluated on its way, and what is kept of it."""

import json
import logging
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from study_arms import CHECKPOINTS, Arm, flags
from study_fronts import Limits, chosen
from tqdm import tqdm

from ddpo import config, prompts
from ddpo.config import Config
from ddpo.errors import Stopped
from ddpo.evaluation import matched
from ddpo.records import metrics
from ddpo.runs import folder as run_folder
from ddpo.runs.session import Session

log = logging.getLogger("ddpo")

PER_PROMPT = 2
KL_PICTURES = 4
KEPT = (
    "iteration",
    "reward/mean",
    "reward/std",
    "clip_frac",
    "ratio/max_dev",
    "grad_norm",
    "objective/ess",
    "skipped_steps",
)
"""Of a row of metrics.jsonl."""

SETS = ("animals", "animals_heldout", "activities_heldout")
"""The first one is that on which fronts are measured."""

STARTS: dict[tuple[str, str], list[matched.Shot]] = {}
"""The pretrained model's pictures by task and prompt set: the same for every run."""


class Watched(Session):
    """A training that is evaluated at `CHECKPOINTS`, and says how much CPU time it took without.

    sets  those that are evaluated: the first one at each of them, the others where it is the best
          so far, as no other checkpoint can be chosen; at the end all of `SETS` are
    """

    def __init__(self, settings: Config, task: str, sets: Sequence[str]) -> None:
        super().__init__(settings)
        self.task, self.asked = task, sets
        self.train_cpu_s = 0.0
        self.looks: list[dict[str, Any]] = []

    def iterate(self, bar: tqdm) -> None:
        """One iteration, and a look at what became of the model where one is due."""
        if not self.looks:
            self.look()
        before = time.process_time()
        super().iterate(bar)
        self.train_cpu_s += time.process_time() - before
        if self.trainer.iteration in CHECKPOINTS:
            self.look()

    def look(self, ends: bool = False) -> None:
        """Means of all scores on the sets that are due, and every sample's on the first one."""
        if not self.looks or self.looks[-1]["iteration"] != self.trainer.iteration:
            self.looks.append(self._first_set())
        looked, everything = self.looks[-1], ends or not self.trainer.iteration
        if everything or self.leads():
            for name in SETS if everything else self.asked:
                if name not in looked["means"]:
                    looked["means"][name] = self._means(self.shots(name))[0]

    def leads(self) -> bool:
        """Whether the newest look is the best on the front so far."""
        so_far = {"task": self.task, "checkpoints": self.looks}
        return chosen(so_far, Limits()) is self.looks[-1]

    def _first_set(self) -> dict[str, Any]:
        """What a checkpoint is on the set that fronts are measured on."""
        shots = self.shots(SETS[0])
        judged, guards = self._means(shots)
        known = [shot.kl for shot in shots if shot.kl is not None]
        return {
            "iteration": self.trainer.iteration,
            "images_seen": self.trainer.images_seen,
            "train_cpu_s": round(self.train_cpu_s, 2),
            "kl": round(sum(known) / len(known), 5) if known else 0.0,
            "means": {SETS[0]: judged},
            "guards": guards,
            "samples": {name: [round(s.scores[name], 4) for s in shots] for name in judged},
        }

    def _means(self, shots: Sequence[matched.Shot]) -> tuple[dict[str, float], dict[str, float]]:
        """Of the rewards and judges, and of the guards."""
        names, judged = list(shots[0].scores), [judge.name for judge in self.judges]
        means = {k: round(sum(s.scores[k] for s in shots) / len(shots), 5) for k in names}
        return {k: means[k] for k in judged}, {k: means[k] for k in names if k not in judged}

    def shots(self, name: str) -> list[matched.Shot]:
        """Two pictures of every prompt of a set, at the same seeds in every run."""
        starts = self.trainer.iteration == 0
        if starts and (self.task, name) in STARTS:
            return STARTS[self.task, name]
        found = matched.all_shots(
            *(self.trainer.policy, self.sampler, prompts.load(name), PER_PROMPT, self.judges),
            kl_pictures=0 if starts or name != SETS[0] else KL_PICTURES,
        )
        if starts:
            STARTS[self.task, name] = found
        return found


def measure(run: Arm, sets: Sequence[str]) -> dict[str, Any]:
    """One run from the pretrained model to its end, with all looks on its way.

    Raises SystemExit where a signal has ended it early: it has to begin again.
    """
    started = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        settings = config.parse([*flags(run), "--run_dir", f"{folder}/run"])
        session, stopped = Watched(settings, run.task, sets), None
        try:
            session.train()
        except Stopped as error:
            if str(error).startswith("stopped after"):  # a signal: the run is not finished
                raise SystemExit(3) from error
            stopped = str(error).partition(" (state saved")[0]
        session.look(ends=True)
        rows = metrics.read(Path(folder) / "run" / "metrics.jsonl")
    return {
        "name": run.name,
        "task": run.task,
        "arm": run.arm,
        "seed": run.seed,
        "lr": run.lr,
        "flags": flags(run),
        "dtype": session.settings.model.dtype,
        "commit": commit(),
        "versions": run_folder.versions(),
        "stopped": stopped,
        "train_cpu_s": round(session.train_cpu_s, 1),
        "cpu_s": round(time.process_time() - started, 1),
        "curve": [{key: row[key] for key in KEPT if key in row} for row in rows],
        "checkpoints": session.looks,
    }


def text(result: dict[str, Any]) -> str:
    """JSON with a line for each entry, and for each row of a list of rows."""
    lines = []
    for key, value in result.items():
        words = json.dumps(value)
        if isinstance(value, list) and value and isinstance(value[0], dict):
            words = "[\n  " + ",\n  ".join(map(json.dumps, value)) + "\n ]"
        lines.append(f" {json.dumps(key)}: {words}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def commit() -> str:
    """Of the code that ran, with a mark where the tree differs from it."""
    git = ["git", "-C", str(Path(__file__).parent)]
    where = ["--", "../../ddpo", "../../rewards", "../../configs", ".."]
    known = subprocess.run(
        [*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    changed = subprocess.run([*git, "diff", "--quiet", "HEAD", *where]).returncode
    return known + ("+" if changed else "")
