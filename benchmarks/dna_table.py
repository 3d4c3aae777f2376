"""The table of docs/sequences.md: who gains which activity in the DNA world, and what it costs.

    python benchmarks/dna_table.py --out benchmarks/results/dna --seeds 0 1 2

trains each method with each seed (as the configurations configs/dna*.yaml say), draws sequences of
the result and writes one JSON for each finished run; those that are there are not made again. A run
that is trained already is judged alone:

    python benchmarks/dna_table.py --out benchmarks/results/dna --judge runs/dna --method drakes

and `--report` prints the table of what is there: means over seeds, with the smallest and largest.

The sequences are judged by a network and a formula that were not trained on (ddpo/models/dna).
Every row has the denoising steps of its configuration. CPU-minutes are those of the training
process, its start included; best of 16 has those of drawing.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddpo import config
from ddpo.building import build
from ddpo.models.dna import activity, base, grammar, oracles, statistics
from ddpo.parallel.seeds import Purpose
from ddpo.prompts import Prompt
from ddpo.records import metrics
from ddpo.rollout.sample import sample
from ddpo.runs.finished import Run

WITHOUT_KL = ["--config", "dna", "--objective.alpha", "0"]

METHODS: dict[str, list[str]] = {
    "base": ["--config", "dna"],
    "best_of_16": ["--config", "dna"],
    "drakes_without_kl": [*WITHOUT_KL, "--trainer.iterations", "90", "--trainer.lr", "4e-3"],
    "drakes": ["--config", "dna"],
    "ddpo": ["--config", "dna_ddpo"],
    "grpo": ["--config", "dna_grpo"],
    "prdp": ["--config", "dna_prdp"],
    "drakes_40": ["--config", "dna", "--trainer.iterations", "40"],
    "drakes_without_kl_40": [*WITHOUT_KL, "--trainer.iterations", "40"],
    "drakes_without_kl_quick": [
        *[*WITHOUT_KL, "--trainer.iterations", "40"],
        *["--trainer.lr", "1e-2", "--trainer.lr_schedule", "constant"],
    ],
}
UNTRAINED = {"base": 1, "best_of_16": 16}
"""Sequences of the base that are drawn for one that is kept: the best by the trained oracle."""

HELD_OUT, DRAWS = 5, 20
"""The seed of the held-out sequences; random masks per sequence in the bound on its likelihood."""


def drawn(policy: Any, sampler: Any, count: int, seed: int) -> Tensor:
    """Letter numbers of `count` sequences under the weights in force."""
    keys = [(Purpose.EVALUATION, 1000 + seed, i) for i in range(count)]
    with torch.no_grad():
        parts = list(sample(policy, sampler, [Prompt("enhancer")] * count, keys))
    return torch.cat([part.latents[:, -1] for part in parts]).cpu()


def row(tokens: Tensor) -> dict[str, float]:
    """Everything that is said of a set of sequences."""
    data = grammar.draw(10_000, HELD_OUT)
    best = data[activity.activity(data).argsort(descending=True)[:1000]]
    scores = {
        "activity_trained": oracles.score(oracles.load("oracle_train"), tokens),
        "activity_judge": oracles.score(oracles.load("oracle_judge"), tokens),
        "activity_true": activity.activity(tokens),
    }
    likelihood = base.log_likelihood(
        base.load(), tokens[:128], torch.Generator().manual_seed(0), DRAWS
    )
    return {
        **{name: values.median().item() for name, values in scores.items()},
        "accessible": (oracles.score(oracles.load("accessibility"), tokens) > 0)
        .float()
        .mean()
        .item(),
        "kmer_correlation_top_decile": statistics.kmer_correlation(tokens, best),
        "log_likelihood": likelihood.mean().item(),
        "longest_run": statistics.longest_run(tokens).float().mean().item(),
        "gc_content": statistics.gc_content(tokens).mean().item(),
        "different": len(tokens.unique(dim=0)) / len(tokens),
        "sequences": len(tokens),
    }


def judge(
    folder: Path | None, method: str, seed: int, count: int, checkpoint: str = "tuned"
) -> dict[str, Any]:
    """Draw and judge: of a run, or without one of the base model."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    if folder is None:
        settings = config.parse([*METHODS[method], "--seed", str(seed)])
        policy = build.policy(settings)
        kept, sampler = UNTRAINED[method], build.sampler(settings, policy)
        tokens = drawn(policy, sampler, count * kept, seed)
        if kept > 1:
            values = oracles.score(oracles.load("oracle_train"), tokens).view(count, kept)
            tokens = tokens.view(count, kept, -1)[torch.arange(count), values.argmax(1)]
        cost = {"queries": count * kept if kept > 1 else 0}
    else:
        run = Run(folder)
        rows = metrics.read(folder / "metrics.jsonl")
        last = rows[-1] if checkpoint == "tuned" else rows[int(checkpoint) - 1]
        with run.policy.weights(run.remember(checkpoint)):
            tokens = drawn(run.policy, run.sampler, count, seed)
        cost = {"queries": last["images_seen"], "iterations": last["iteration"]}
    if folder is None and method != "base":
        after = resource.getrusage(resource.RUSAGE_SELF).ru_utime
        cost["cpu_minutes"] = (after - before) / 60
    return {"method": method, "seed": seed, **row(tokens), **cost}


def train(folder: Path, method: str, seed: int) -> float:
    """CPU-minutes of a training, which a process of its own does with one thread."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "ddpo", "train", *METHODS[method], "--seed", str(seed)]
    command += ["--run_dir", str(folder), "--resume", "auto", "--log.images", "0"]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / 60


def commit() -> str:
    words = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    return subprocess.run(words, capture_output=True, text=True).stdout.strip()


SHOWN = {
    **dict.fromkeys(("activity_trained", "activity_judge", "activity_true", "accessible"), ".2f"),
    "kmer_correlation_top_decile": ".3f",
    **dict.fromkeys(("log_likelihood", "longest_run", "cpu_minutes"), ".1f"),
}
"""Columns of the report."""


def report(out: Path, methods: list[str]) -> None:
    """One line per method of what its files have; not all runs were timed."""
    names = ["method", "seeds", *SHOWN, "queries"]
    print(f"| {' | '.join(names)} |\n|{' --- |' * len(names)}")
    for method in methods:
        files = sorted(out.glob(f"{method}_[0-9].json"))
        rows = [json.loads(file.read_text(encoding="utf-8")) for file in files]
        if not rows:
            continue
        cells = [method, str(len(rows))]
        for name, form in SHOWN.items():
            values = [found[name] for found in rows if found.get(name) is not None]
            if not values:
                cells.append("")
                continue
            mean, low, high = sum(values) / len(values), min(values), max(values)
            spread = f" ({low:{form}} to {high:{form}})" if len(values) > 1 else ""
            cells.append(f"{mean:{form}}{spread}")
        print(f"| {' | '.join([*cells, str(rows[0].get('queries', 0))])} |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the JSON files")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--method", choices=METHODS, nargs="+", default=[*METHODS])
    parser.add_argument("--count", type=int, default=256, help="sequences that are judged")
    parser.add_argument("--judge", type=Path, help="a run that is trained already")
    parser.add_argument("--checkpoint", default="tuned", help="of that run, as 000040")
    parser.add_argument("--cpu_minutes", type=float, help="of that run's training, measured")
    parser.add_argument("--report", action="store_true", help="print the table, and make nothing")
    given = parser.parse_args()
    if given.report:
        return report(given.out, given.method)
    torch.set_num_threads(1)
    given.out.mkdir(parents=True, exist_ok=True)
    for seed in given.seeds:
        for method in given.method:
            file = given.out / f"{method}_{seed}.json"
            if file.exists():
                continue
            minutes, folder = given.cpu_minutes, given.judge
            if folder is None and method not in UNTRAINED:
                folder = Path("runs", "dna_table", f"{method}_{seed}")
                minutes = train(folder, method, seed)
            result = judge(folder, method, seed, given.count, given.checkpoint)
            if minutes is not None:
                result["cpu_minutes"] = minutes
            file.write_text(json.dumps({**result, "commit": commit()}, indent=1) + "\n")
            print(file)


if __name__ == "__main__":
    main()
