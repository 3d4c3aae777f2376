"""The metrics of a run: what each name means, and metrics.jsonl, one object per iteration."""

import json
import os
from pathlib import Path
from typing import Any

from ddpo.records.files import whole

METRICS = {
    "iteration": "number of the iteration, from 1",
    "images_seen": "reward queries so far: images sampled and scored since the start",
    "reward/mean": "mean of the weighted sum of all rewards over the iteration's images",
    "reward/std": "its standard deviation",
    "reward/<name>": "mean of one reward, unweighted",
    "reward/missing": "images left out because a reward gave no value (NaN)",
    "missing/<name>": "images without a value of one reward",
    "reward/gated": "share of the images that violate the min or max of a reward; should fall",
    "gated/<name>": "share of the images outside the gate of one reward",
    "loss": "the objective's loss, mean over the iteration's optimizer steps",
    "ratio/mean": (
        "mean of exp(logp_new - logp_old) over all pairs scored in the iteration's updates, or "
        "over a few where the gradient was collected while sampling; near 1"
    ),
    "ratio/max_dev": (
        "largest |ratio - 1| among them; with one update per iteration at most 1e-6 in fp32"
    ),
    "clip_frac": "share of pairs whose ratio left the clip range; healthy below 0.3",
    "approx_kl": (
        "0.5 mean (logp_new - logp_old)^2, in the units of logp; a jump announces a collapse"
    ),
    "kl_ref": (
        "KL of a step to the reference per latent dimension, measured on a few pairs; grows slowly"
    ),
    "objective/<name>": "what an objective reports of itself, as the effective sample size of rwr",
    "grad_norm": "norm of the gradient before clipping, mean over optimizer steps",
    "lr": "learning rate of the last optimizer step",
    "skipped_steps": (
        "optimizer steps left out because loss or gradient was not finite; should be 0"
    ),
    "left_out": (
        "share of the samples with a reward whose advantage is 0, which the update leaves out "
        "where no gradient comes from them; a rise means that rewards tell images apart no more"
    ),
    "guard/brightness": "mean brightness of the images, 0 to 1",
    "guard/saturation": "mean saturation, 0 to 1",
    "guard/edge_density": (
        "share of pixels on an edge; a fall under a compression reward means blank pictures"
    ),
    "guard/color_entropy": "entropy of the color histogram; a fall means fewer colors",
    "guard/gc_content": "share of G and C in sequences, 0 to 1",
    "guard/longest_run": "letters of the longest run of one letter; a rise means poly-A",
    "guard/entropy": "entropy of a sequence's letters in bits; a fall means fewer kinds of letters",
    "guard/duplicates": "share of the iteration's sequences that another one equals; should be 0",
    "eval/<name>": "mean of a reward or a guard over the evaluation prompts at fixed seeds",
    "eval/kl": "KL of the denoising chain to the base in nats, on a few trajectories of these",
    "time/sample": "seconds spent in sampling",
    "time/reward": "seconds spent waiting for rewards after sampling had ended",
    "time/update": "seconds spent in the update",
    "time/total": "seconds of the whole iteration",
    "images_per_s": "images of the iteration divided by its seconds",
    "memory/peak_gb": (
        "peak memory so far in GB: of the GPU, or resident memory of the process without one"
    ),
}
"""Every metric's name and meaning, with its healthy range if it has one; `<name>` stands for a
reward's."""


def clean(found: Any) -> Any:
    """The same with null for what is not finite, since JSON has no NaN."""
    return json.loads(json.dumps(found), parse_constant=lambda name: None)


def write(file: Path, row: dict[str, Any]) -> None:
    """Append one line, whole and on disk."""
    with open(file, "a", encoding="utf-8") as lines:
        lines.write(json.dumps(clean(row)) + "\n")
        lines.flush()
        os.fsync(lines.fileno())


def read(file: Path) -> list[dict[str, Any]]:
    """All whole lines; a torn or damaged one is left out."""
    rows = map(_parsed, file.read_bytes().splitlines(keepends=True)) if file.is_file() else ()
    return [row for row in rows if row is not None]


def cut(file: Path, iteration: int) -> None:
    """Drop the lines after `iteration` and keep the bytes before: what a resume starts from."""
    if not file.is_file():
        return
    lines = file.read_bytes().splitlines(keepends=True)
    rows = map(_parsed, lines)
    kept = b"".join(
        line for line, row in zip(lines, rows, strict=True) if row and row["iteration"] <= iteration
    )
    if kept != b"".join(lines):
        with whole(file) as aside:
            aside.write_bytes(kept)


def _parsed(line: bytes) -> dict[str, Any] | None:
    """None for a torn or damaged line."""
    try:
        return json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
