"""The same prompts at the same seeds under several weights: pictures, scores, differences."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ddpo.evaluation import stats
from ddpo.images import GUARDS, to_pil
from ddpo.models import Policy
from ddpo.parallel import ranks
from ddpo.parallel.seeds import Purpose
from ddpo.prompts import Prompt, PromptSet
from ddpo.records.files import whole
from ddpo.records.metrics import clean
from ddpo.rewards import Reward
from ddpo.rollout.sample import Sampler, sample
from ddpo.scoring.scorer import Scorer


@dataclass(frozen=True)
class Shot:
    """One picture of an evaluation: its prompt, its seed and its scores (NaN: no value)."""

    prompt: str
    seed: int
    image: Image.Image
    scores: dict[str, float]


@torch.no_grad()
def shoot(
    policy: Policy,
    sampler: Sampler,
    prompts: Sequence[Prompt],
    seeds: Sequence[int],
    rewards: Sequence[Reward],
    per_prompt: int = 1,
    timeout_s: float | None = None,
) -> list[Shot]:
    """One picture for each prompt and seed, in order, scored by every reward and guard.

    A picture depends on its prompt, its seed and the weights alone. Each `per_prompt` prompts in a
    row are the same, and their pictures one group for the rewards that compare. `timeout_s` is the
    scorer's.
    """
    keys = [(Purpose.EVALUATION, seed) for seed in seeds]
    scorer = Scorer(rewards, timeout_s=timeout_s, group_size=per_prompt)
    images = list[Image.Image]()
    scores: dict[str, list[float]] = {
        name: [] for name in [reward.name for reward in rewards] + [*GUARDS]
    }
    for part in sample(policy, sampler, prompts, keys):
        scorer.submit(
            part.images, [p.text for p in part.prompts], [p.metadata for p in part.prompts]
        )
        images += to_pil(part.images)
        for name, guard in GUARDS.items():
            scores[name] += guard(part.images).tolist()
    scores |= {name: values.tolist() for name, values in scorer.collect().items()}
    rows = [dict(zip(scores, row, strict=True)) for row in zip(*scores.values(), strict=True)]
    shots = zip([prompt.text for prompt in prompts], seeds, images, rows, strict=True)
    return [Shot(*shot) for shot in shots]


def all_shots(
    policy: Policy,
    sampler: Sampler,
    prompts: PromptSet,
    per_prompt: int,
    rewards: Sequence[Reward],
    timeout_s: float | None = None,
    first_seed: int = 0,
) -> list[Shot]:
    """`per_prompt` pictures of every prompt, each with its own seed.

    Ranks share the prompts, and get all.

    Seeds count up from `first_seed` over the whole set.
    """
    repeated = [prompt for prompt in prompts for _ in range(per_prompt)]
    seeds = range(first_seed, first_seed + len(repeated))
    return shared(policy, sampler, repeated, seeds, rewards, per_prompt, timeout_s)


def shared(
    policy: Policy,
    sampler: Sampler,
    prompts: Sequence[Prompt],
    seeds: Sequence[int],
    rewards: Sequence[Reward],
    per_prompt: int = 1,
    timeout_s: float | None = None,
) -> list[Shot]:
    """What `shoot` returns, on every rank: each makes and judges a block of whole prompts."""
    state, groups = ranks.state(), len(prompts) // per_prompt
    block = ranks.share(groups, state.process_index, state.num_processes)
    mine = slice(block.start * per_prompt, block.stop * per_prompt)
    with ranks.together():
        arguments = (policy, sampler, prompts[mine], seeds[mine], rewards, per_prompt, timeout_s)
        shots = shoot(*arguments) if block else []
    return ranks.gather(shots)


def compare(base: Sequence[Shot], tuned: Sequence[Shot]) -> dict[str, dict[str, Any]]:
    """For each score: both columns' mean, standard error and n, the difference, the win rate."""
    summaries = {}
    for name in base[0].scores:
        before, after = (np.array([shot.scores[name] for shot in shots]) for shots in (base, tuned))
        summaries[name] = {
            "base": stats.summary(before),
            "tuned": stats.summary(after),
            "difference": stats.paired(before, after),
            "win_rate": stats.win_rate(before, after),
        }
    return summaries


def write(
    folder: Path,
    columns: Mapping[str, Mapping[str, Sequence[Shot]]],
    checkpoint: str | None = None,
    **more: Mapping[str, Any],
) -> dict[str, Any]:
    """Write evaluation/ from columns[set name][column name]: images, samples.jsonl, results.json.

    It takes the place of an earlier evaluation when it is whole. `checkpoint` is that of the tuned
    column; `more` goes into results.json.
    """
    sets = {name: compare(shots["base"], shots["tuned"]) for name, shots in columns.items()}
    results, lines = {"sets": sets, "checkpoint": checkpoint, **more}, []
    with whole(folder) as aside:
        (aside / "images").mkdir(parents=True)
        for (set_name, shots), column in product(columns.items(), ("base", "tuned")):
            for shot in shots[column]:
                image = f"images/{set_name}_{shot.seed:05d}_{column}.png"
                shot.image.save(aside / image)
                row = {"set": set_name, "prompt": shot.prompt, "seed": shot.seed, "column": column}
                row["checkpoint"] = checkpoint if column == "tuned" else None
                lines.append(json.dumps({**row, "image": image, "scores": clean(shot.scores)}))
        (aside / "samples.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        (aside / "results.json").write_text(json.dumps(clean(results), indent=1), encoding="utf-8")
    return results
