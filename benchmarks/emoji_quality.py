"""What the base can draw, by the world's two judges:
`python benchmarks/emoji_quality.py --out runs/quality`.

Single animals, held-out animals, and animals with an activity (in combinations that were trained
and that never were), each prompt `--per-prompt` times; writes quality.json and a contact sheet for
each set. Look at the sheets.
"""

import argparse
import io
import json
import os
import statistics
from pathlib import Path

import torch

from ddpo import prompts, rewards, samplers
from ddpo.evaluation.matched import all_shots
from ddpo.evaluation.table import table
from ddpo.models.emoji.scenes import BACKGROUNDS, draw
from ddpo.models.stable_diffusion import StableDiffusion
from ddpo.rollout.sample import Sampler

SETS = ("animals", "animals_heldout", "activities", "activities_heldout")


def scene_sizes(count: int = 500) -> dict[str, float]:
    """Mean JPEG size (kB, quality 95) of single-animal scenes: of all backgrounds, and of plain
    ones."""
    animals = [prompt.text for prompt in prompts.load("animals")]

    def size(seed: int, background: str | None) -> float:
        file = io.BytesIO()
        draw(animals[seed % len(animals)], seed, background).save(file, "JPEG", quality=95)
        return file.tell() / 1000

    kinds = [None, *BACKGROUNDS]
    return {
        str(kind or "mix"): statistics.mean(size(seed, kind) for seed in range(count))
        for kind in kinds
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/quality"))
    parser.add_argument("--pretrained", default="emoji")
    parser.add_argument("--captioner", default="")
    parser.add_argument("--per-prompt", type=int, default=20)
    parser.add_argument("--num-steps", type=int, default=50)
    parser.add_argument("--guidance-scale", type=float, default=3.0)
    parser.add_argument("--sets", nargs="+", default=list(SETS))
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    policy = StableDiffusion(arguments.pretrained, dtype="bf16")
    steps = samplers.build("ddim", policy.schedule, arguments.num_steps, eta=1.0)
    sampler = Sampler(steps, arguments.guidance_scale, batch_size=16)
    judges = [
        rewards.build("emoji_recognition", params={"captioner": arguments.captioner}),
        rewards.build("emoji_clip"),
        rewards.build("jpeg_incompressibility"),
    ]
    found: dict[str, dict[str, float]] = {"scene_sizes_kb": scene_sizes()}
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.sets:
        wanted = prompts.load(name)
        shots = all_shots(policy, sampler, wanted, arguments.per_prompt, judges)
        scores = {judge.name: [shot.scores[judge.name] for shot in shots] for judge in judges}
        sizes = scores["jpeg_incompressibility"]
        captioner, clip = scores["emoji_recognition"], scores["emoji_clip"]
        found[name] = {
            "recognized": statistics.mean(captioner),
            "images": len(shots),
            "by_clip": statistics.mean(clip),
            "agree": statistics.mean(a == b for a, b in zip(captioner, clip, strict=True)),
            "size_kb_mean": statistics.mean(sizes),
            "size_kb_sd": statistics.pstdev(sizes),
        }
        rows = [
            shots[i : i + arguments.per_prompt][:6]
            for i in range(0, len(shots), arguments.per_prompt)
        ]
        marks = [
            [{0.0: "not recognized", 1.0: ""}[shot.scores["emoji_recognition"]] for shot in row]
            for row in rows
        ]
        cells = [[shot.image for shot in row] for row in rows]
        labels = [row[0].prompt for row in rows]
        columns = [str(i) for i in range(len(rows[0]))]
        table(cells, labels, columns, marks, scale=1).save(arguments.out / f"{name}.png")
        print(json.dumps({name: found[name]}), flush=True)
    (arguments.out / "quality.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
