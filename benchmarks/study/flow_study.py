"""Flow-GRPO, MixGRPO, DiffusionNFT, PRDP and DDPO side by side, on the emoji world's flow model.

    python benchmarks/study/flow_study.py run --seeds 0 1 2
    python benchmarks/study/flow_study.py report    # a table of benchmarks/results/flow

Alignment on activities, every method with the same 5,760 images (45 iterations of 128) and queries
of the reward, the same adapter, learning rate and schedule. None was tuned here but Flow-GRPO,
whose configuration the others share where the method leaves it open. Judged by the captioner and
by the CLIP that is the reward's, also on combinations that were never trained on, all with 10 of
Euler's steps. One JSON a finished run; those that are there are not made again.
"""

import argparse
import json
import math
import os
import resource
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results" / "flow"
SHARED = [
    *["--trainer.iterations", "45", "--model.dtype", "auto"],
    *["--log.images", "0", "--checkpoint.every", "15"],
]
FLOW_GRPO = ["--config", "emoji_flow_grpo"]
CLIP = ["--objective.clip_range", "4.0e-4"]

METHODS = {
    "flow_grpo": FLOW_GRPO,
    "mixgrpo": ["--config", "emoji_mixgrpo"],
    "nft": ["--config", "emoji_nft"],
    "ddpo": [*FLOW_GRPO, "--objective.name", "ddpo", *CLIP, "--advantage.std", "group"],
    "prdp": [*FLOW_GRPO, "--objective.name", "prdp", *CLIP, "--trainer.epochs", "2"],
}
"""DDPO divides by the deviation of each prompt; PRDP regresses on differences of rewards within a
prompt and has twice the updates a rollout, as in its paper. Both see the two steps that Flow-GRPO
trains on."""

JUDGED = {
    "captioner": ("activities", "emoji_recognition"),
    "held_out": ("activities_heldout", "emoji_recognition"),
    "clip": ("activities", "emoji_clip"),
}
STUDENT = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776}
"""97.5 % quantiles of Student's t for so many seeds."""


def child(*argv: str) -> float:
    """CPU-minutes of one ddpo command, in a process of its own with one thread."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "ddpo", *argv]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / 60


def measure(method: str, seed: int, folder: Path) -> dict[str, Any]:
    """Train and evaluate one run in `folder`; a run that was cut off goes on."""
    flags = [*METHODS[method], *SHARED, "--seed", str(seed)]
    minutes = child("train", *flags, "--run_dir", str(folder), "--resume", "auto")
    child("evaluate", str(folder))
    found = json.loads((folder / "evaluation" / "results.json").read_text(encoding="utf-8"))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    judged = {name: found["sets"][where][score] for name, (where, score) in JUDGED.items()}
    return {
        "method": method,
        "seed": seed,
        "flags": flags,
        "dtype": found["config"]["model"]["dtype"],
        "commit": commit(),
        "train_cpu_minutes": round(minutes, 2),
        "images": rows[-1]["images_seen"],
        "rewards": [row["reward/mean"] for row in rows],
        "judged": judged,
    }


def commit() -> str:
    words = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    return subprocess.run(words, capture_output=True, text=True).stdout.strip()


def run(methods: list[str], seeds: list[int], work: Path) -> None:
    RESULTS.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        for method in methods:
            file, folder = RESULTS / f"{method}_{seed}.json", work / f"{method}_{seed}"
            if file.exists():
                continue
            result = measure(method, seed, folder)
            file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
            shutil.rmtree(folder)
            print(file, flush=True)


def report() -> None:
    """One line per method: the mean over seeds of what is gained, with its 95 % interval."""
    names = list(JUDGED)
    print(f"| | seeds | {' | '.join(names)} | CPU-minutes |\n|{' --- |' * (len(names) + 3)}")
    for method in METHODS:
        files = sorted(RESULTS.glob(f"{method}_*.json"))
        runs = [json.loads(file.read_text(encoding="utf-8")) for file in files]
        if not runs:
            continue
        cells = [
            spread([each["judged"][name]["difference"]["mean"] for each in runs]) for name in names
        ]
        minutes = statistics.mean(each["train_cpu_minutes"] for each in runs)
        print(f"| {method} | {len(runs)} | {' | '.join(cells)} | {minutes:.1f} |")


def spread(values: list[float]) -> str:
    mean = statistics.mean(values)
    if len(values) < 2:
        return f"{mean:+.3f}"
    half = STUDENT[len(values)] * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:+.3f} +- {half:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("do", choices=("run", "report"))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--work", type=Path, default=Path("runs/flow_study"))
    given = parser.parse_args()
    if given.do == "report":
        report()
    else:
        run(given.methods, given.seeds, given.work)


if __name__ == "__main__":
    main()
