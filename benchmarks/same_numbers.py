"""Whether another checkout computes the same numbers:
`python benchmarks/same_numbers.py OLD_CHECKOUT`.

For every objective, the smoke configuration is trained in both checkouts (fp32, one thread, in the
Python that runs this). The first iteration's reward, loss, gradient norm and KL must be equal to
1e-6 relative, and the LoRA after the last iteration to 1e-4. Exit code 1 where they are not.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from safetensors.torch import load_file

OBJECTIVES = ("ddpo", "ddpo_sf", "prdp", "p3o", "grpo", "dpok", "d3po", "rwr", "dpo")
METRICS = ("reward/mean", "loss", "grad_norm", "kl_ref")
METRIC_TOLERANCE, LORA_TOLERANCE = 1e-6, 1e-4
HERE = Path(__file__).parent.parent


def train(checkout: Path, objective: str, run: Path) -> None:
    """The smoke run of a checkout, whose own code and configuration are read: it is the working
    folder."""
    flags = ["--config", "configs/smoke.yaml", "--objective.name", objective, "--run_dir", str(run)]
    quiet = ["--log.images", "0", "--model.dtype", "fp32"]
    environment = {
        **os.environ,
        "PYTHONPATH": str(checkout),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "ACCELERATE_USE_CPU": "true",
    }
    command = [sys.executable, "-m", "ddpo.train", *flags, *quiet]
    subprocess.run(command, cwd=checkout, env=environment, check=True, capture_output=True)


def first_row(run: Path) -> dict[str, float | None]:
    with (run / "metrics.jsonl").open(encoding="utf-8") as lines:
        row = json.loads(next(lines))
    return {name: row.get(name) for name in METRICS}


def relative(old: float | None, new: float | None) -> float:
    """|new - old| / |old|; 0 where both are missing, as the KL of an objective without
    densities."""
    if old is None or new is None:
        return 0.0 if old is new else math.inf
    return abs(new - old) / max(abs(old), 1e-30) if old != new else 0.0


def lora_difference(old: Path, new: Path) -> float:
    """Norm of the difference of all trained weights, relative to the old ones'."""
    file = Path("lora") / "pytorch_lora_weights.safetensors"
    before, after = load_file(old / file), load_file(new / file)
    if before.keys() != after.keys():
        return math.inf
    moved = sum(
        (after[name].double() - before[name].double()).square().sum().item() for name in before
    )
    return math.sqrt(moved / sum(value.double().square().sum().item() for value in before.values()))


def compare(
    objective: str, old: Path, new: Path, folder: Path
) -> Iterator[tuple[str, float, float]]:
    """(what, its relative difference, what is allowed) of one objective."""
    runs = {"old": folder / f"{objective}-old", "new": folder / f"{objective}-new"}
    train(old, objective, runs["old"])
    train(new, objective, runs["new"])
    before, after = first_row(runs["old"]), first_row(runs["new"])
    for name in METRICS:
        yield name, relative(before[name], after[name]), METRIC_TOLERANCE
    yield "lora", lora_difference(runs["old"], runs["new"]), LORA_TOLERANCE


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("old", type=Path, help="another checkout")
    parser.add_argument("--only", choices=OBJECTIVES, nargs="+", default=OBJECTIVES)
    arguments = parser.parse_args()
    differ = False
    with tempfile.TemporaryDirectory() as folder:
        for objective in arguments.only:
            found = list(compare(objective, arguments.old.resolve(), HERE, Path(folder)))
            differ |= any(difference > allowed for _, difference, allowed in found)
            words = "  ".join(f"{name} {difference:.1e}" for name, difference, _ in found)
            print(f"{objective:8} {words}", flush=True)
    print("the numbers differ" if differ else "the numbers are the same")
    return int(differ)


if __name__ == "__main__":
    raise SystemExit(main())
