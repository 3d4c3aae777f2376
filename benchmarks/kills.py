"""SIGKILL a run at random times, resume it until it ends, and compare it with a run that was never
killed.

    OMP_NUM_THREADS=1 python benchmarks/kills.py [--kills 100] [--seed 0]

A tiny random model, so that a run takes seconds; everything that has a memory is switched on.
Prints where the kills hit, and stops with an error at the first difference: of a byte of adapter,
optimizer, average, state or picture, of a metric, of a line of metrics.jsonl that was safe. Runs
are forked from one process, which has done the imports.
"""

import argparse
import collections
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from safetensors import safe_open

from ddpo import train
from ddpo.commands import frame
from ddpo.models._tiny import tiny
from ddpo.records import checkpoint
from ddpo.runs import session  # imported once, before the forks

VARYING = ("time/", "images_per_s", "memory/")
ITERATIONS, EVERY = 8, 2


def flags(folder: Path) -> list[str]:
    """A run of every part that has a memory."""
    tiny().save_pretrained(folder / "model")
    (folder / "four.txt").write_text("a fox\na cat\nan owl\na bee\n")
    given = {
        "model.pretrained": folder / "model",
        "prompts.path": folder / "four.txt",
        "evaluation.prompts": "null",
        "trainer.minibatches": 2,
        "rewards": "[{name: jpeg_compressibility}]",
        "sampler.num_steps": 3,
        "advantage.name": "per_prompt",
        "advantage.min_count": 2,
        "trainer.samples_per_prompt": 2,
        "trainer.epochs": 2,
        "trainer.lr_schedule": "cosine",
        "trainer.iterations": ITERATIONS,
        "ema.decay": 0.6,
        "checkpoint.every": EVERY,
        "evaluation.every": 3,
        "evaluation.num_prompts": 2,
        "log.images": 2,
    }
    return [
        "--config",
        "smoke",
        *(word for key, value in given.items() for word in (f"--{key}", str(value))),
    ]


def run(argv: list[str], kill_after_s: float | None = None) -> int:
    """The exit code, or -9."""
    child = os.fork()
    if child == 0:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        os._exit(frame.run(train.main, argv))
    if kill_after_s is not None:
        time.sleep(kill_after_s)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def content(folder: Path) -> dict[str, object]:
    """What must be equal: bytes of weights and state, the metrics less what is not promised."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    files = [*folder.rglob("state.json"), *folder.rglob("*.png")]
    return {
        "metrics": [{k: v for k, v in line.items() if not k.startswith(VARYING)} for line in lines],
        **{str(file.relative_to(folder)): file.read_bytes() for file in files},
        **{str(file.relative_to(folder)): tensors(file) for file in folder.rglob("*.safetensors")},
    }


def tensors(file: Path) -> dict[str, object]:
    """Every tensor's bytes, and the metadata, whose order safetensors leaves to chance."""
    with safe_open(file, "np") as opened:
        keys = opened.keys()  # the file itself has no iterator
        values = {key: opened.get_tensor(key).tobytes() for key in keys}
        return values | (opened.metadata() or {})


def safe(folder: Path, started: float) -> tuple[bytes, str]:
    """The lines of metrics up to the newest checkpoint, and where the kill hit the process of that
    time."""
    saved, file = checkpoint.all_of(folder), folder / "metrics.jsonl"
    lines = file.read_bytes().splitlines(keepends=True) if file.exists() else []
    reached = int(saved[-1].name) if saved else 0
    half = any(path.stat().st_mtime > started for path in folder.rglob(".*.writing*"))
    torn = bool(lines) and not lines[-1].endswith(b"\n")
    place = (
        "while writing" if half or torn else f"{len(lines) - reached} iterations after a checkpoint"
    )
    if not (folder / "config.yaml").exists():
        place = "before it had begun"
    elif len(lines) == ITERATIONS and not half:
        place = "after the last iteration"
    return b"".join(lines[:reached]), place


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    arguments = parser.parse_args()
    rng, folder, started = random.Random(arguments.seed), Path(tempfile.mkdtemp()), time.time()
    places: collections.Counter[str] = collections.Counter()
    argv, kills, runs = flags(folder), 0, 0
    before = time.time()
    assert run([*argv, "--run_dir", str(folder / "straight")]) == 0
    straight, seconds = content(folder / "straight"), time.time() - before
    print(f"seed {arguments.seed}, a run takes {seconds:.1f} s, in {folder}", flush=True)
    while kills < arguments.kills:
        this, kept, code = folder / f"run{runs}", b"", -1
        where = f"at kill {kills} of seed {arguments.seed}, in {this}"
        while code != 0:
            begun = time.time()
            again = [*argv, "--run_dir", str(this), "--resume", "auto"]
            code = run(again, rng.uniform(0, 0.7 * seconds) if kills < arguments.kills else None)
            metrics = this / "metrics.jsonl"
            if not (metrics.read_bytes() if metrics.exists() else b"").startswith(kept):
                sys.exit(f"lines that were safe have changed {where}")
            if code == -signal.SIGKILL:
                kills += 1
                kept, place = safe(this, begun)
                places[place] += 1
            elif code != 0:
                sys.exit(f"exit code {code} {where}")
        runs += 1
        found = content(this)
        different = [key for key in {**straight, **found} if straight.get(key) != found.get(key)]
        if different:
            sys.exit(f"{different} differ {where}")
        shutil.rmtree(this)
    shutil.rmtree(folder)
    print(
        f"{kills} kills in {runs} runs, each equal to the straight one; "
        f"{time.time() - started:.0f} s"
    )
    for place, count in places.most_common():
        print(f"{count:4d} {place}")


if __name__ == "__main__":
    assert session.Session
    main()
