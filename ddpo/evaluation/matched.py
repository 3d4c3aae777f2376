"""The same prompts at the same seeds under several weights: pictures and their scores."""

import csv
import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import save_file
from torch import Tensor

from ddpo.evaluation import results as numbers
from ddpo.evaluation import trajectories
from ddpo.evaluation.pages.gallery import trajectory
from ddpo.media import Medium, joined
from ddpo.models import Policy
from ddpo.parallel import ranks
from ddpo.parallel.seeds import Purpose
from ddpo.prompts import Prompt, PromptSet
from ddpo.records.files import whole
from ddpo.records.metrics import clean
from ddpo.rewards import Reward
from ddpo.rollout.divergence import Chain, divergences
from ddpo.rollout.sample import Sampler, sample
from ddpo.rollout.store import Store
from ddpo.scoring.encoding import Encode
from ddpo.scoring.scorer import Scorer
from ddpo.sequences import fasta

Progress = Callable[[int, int], None]
"""Is told of samples: how many were made, and how many were there already."""


@dataclass(frozen=True)
class Shot:
    """One sample of an evaluation: its prompt, its seed, its scores (NaN: no value).

    text  what is written of it besides its picture; empty: nothing
    task  the kind of its prompt, by which scores are shown too; None: of no kind
    file  where its picture is kept; None: nowhere
    kl    of its trajectory to the base; None: not measured
    """

    prompt: str
    seed: int
    image: Image.Image
    scores: dict[str, float]
    text: str = ""
    file: Path | None = None
    kl: float | None = None
    task: str | None = None


TASKS = ("tag", "category", "style")
"""The metadata of a prompt that say of which kind it is, as GenEval, PartiPrompts and HPDv2 call
them; the first that there is."""


@dataclass(frozen=True)
class Keeping:
    """Where samples are kept, so that none is made twice, and who is told how far it is.

    walked  the keys of the samples whose predictions of x_0 are kept too
    base    the chain to which KL is measured; None: that of the policy's own base
    """

    store: Store
    progress: Progress
    walked: frozenset[str] = frozenset()
    base: Chain | None = None


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
    arguments = (policy, sampler, prompts, seeds, rewards, per_prompt, timeout_s)
    return _compared(policy, _shoot(*arguments))


@torch.no_grad()
def _shoot(
    policy: Policy,
    sampler: Sampler,
    prompts: Sequence[Prompt],
    seeds: Sequence[int],
    rewards: Sequence[Reward],
    per_prompt: int,
    timeout_s: float | None,
    keeping: Keeping | None = None,
    measured: Collection[int] = (),
) -> list[Shot]:
    """The same, with the guards' measures in the place of their values.

    What is judged is what a file shows, whether it was just made or kept from before. `measured`
    are the numbers of those whose trajectories' KL to the base is measured, as they are made.
    """
    store = keeping and keeping.store
    names = [store.key(*each) for each in zip(prompts, seeds, strict=True)] if store else []
    found = {
        i: each for i, name in enumerate(names) if (each := store and store.load(name)) is not None
    }
    judged = _Judged(policy.medium, rewards, prompts, per_prompt, sampler.batch_size, timeout_s)
    judged.add({i: each.to(policy.device) for i, each in found.items()})
    missing = [i for i in range(len(prompts)) if i not in found]
    if keeping:
        keeping.progress(0, len(found))
    keys, kl = [(Purpose.EVALUATION, seeds[i]) for i in missing], dict[int, float]()
    walked = keeping.walked if keeping else ()
    again = {n for n, i in enumerate(missing) if i in measured or (walked and names[i] in walked)}
    asked = [prompts[i] for i in missing]
    for part in sample(policy, sampler, asked, keys, remembered=again):
        made = [missing[i] for i in part.samples]
        images = policy.medium.as_kept(part.images)
        rows = {i: row for row, i in enumerate(made) if i in measured}
        base = keeping.base if keeping else None
        found_kl = divergences(policy, sampler, part, [*rows.values()], base)
        own = dict(zip(rows, found_kl, strict=True))
        kl |= own
        if keeping:
            # first, so that no sample is there without them
            shown = {names[i]: row for row, i in enumerate(made) if names[i] in walked}
            files = {keeping.store.file(name): row for name, row in shown.items()}
            folders = {trajectories.folder_of(file): row for file, row in files.items()}
            trajectories.keep(policy, sampler, part, folders)
            keeping.store.save_divergences({names[i]: value for i, value in own.items()})
            keeping.store.save([names[i] for i in made], images)
            keeping.progress(len(made), 0)
        judged.add(dict(zip(made, images.split(1), strict=True)))
    shots = judged.shots(seeds)
    if keeping is None:
        return [replace(shot, kl=kl.get(i)) for i, shot in enumerate(shots)]
    known, shown = keeping.store.divergences(names), policy.medium.suffix == ".png"
    return [
        replace(shot, file=keeping.store.file(name) if shown else None, kl=known.get(name))
        for shot, name in zip(shots, names, strict=True)
    ]


class _Judged:
    """Samples that come in any order, judged in blocks of whole groups.

    What a block consists of depends on the whole list alone, not on what was kept from before or
    on the number of processes: networks round alike then, and scores are the same to the last bit.
    """

    def __init__(
        self,
        medium: Medium,
        rewards: Sequence[Reward],
        prompts: Sequence[Prompt],
        per_prompt: int,
        batch_size: int,
        timeout_s: float | None,
    ) -> None:
        self.medium, self.prompts, self.names = medium, prompts, [r.name for r in rewards]
        self.scorer = Scorer(rewards, timeout_s=timeout_s, group_size=per_prompt)
        self.size = block_size(per_prompt, batch_size)
        self.waiting: dict[int, Tensor] = {}
        self.images: list[Image.Image] = []
        self.texts: list[str] = []
        self.measured: list[Mapping[str, Tensor]] = []

    def add(self, samples: Mapping[int, Tensor]) -> None:
        """Samples by their numbers; each block that is whole, and its predecessors, is judged."""
        self.waiting |= samples
        while block := range(
            len(self.images), min(len(self.images) + self.size, len(self.prompts))
        ):
            if not all(i in self.waiting for i in block):
                return
            images = torch.cat([self.waiting.pop(i) for i in block])
            own = [self.prompts[i] for i in block]
            self.scorer.submit(images, [p.text for p in own], [p.metadata for p in own])
            self.images += self.medium.pictures(images)
            self.texts += self.medium.texts(images)
            self.measured.append(self.medium.measure(images))

    def shots(self, seeds: Sequence[int]) -> list[Shot]:
        """Once all samples are there, in their order."""
        values = self.scorer.collect()
        scores = {name: values[name].tolist() for name in self.names} | joined(self.measured)
        rows = [dict(zip(scores, row, strict=True)) for row in zip(*scores.values(), strict=True)]
        words = [prompt.text for prompt in self.prompts]
        made = zip(words, seeds, self.images, rows, self.texts, strict=True)
        tasks = map(_task, self.prompts)
        return [Shot(*shot, task=task) for shot, task in zip(made, tasks, strict=True)]


def _task(prompt: Prompt) -> str | None:
    found = (prompt.metadata.get(name) for name in TASKS)
    return next((task for task in found if isinstance(task, str) and task), None)


def block_size(per_prompt: int, batch_size: int) -> int:
    """Samples that are judged together: whole groups, about as many as are sampled at a time."""
    return per_prompt * max(1, round(batch_size / per_prompt))


def _compared(policy: Policy, shots: Sequence[Shot]) -> list[Shot]:
    """With the guards' values, some of which compare the samples of the whole set."""
    columns = {
        name: torch.tensor([shot.scores[name] for shot in shots], dtype=torch.float64)
        for name in policy.medium.guards
    }
    values = {name: each.tolist() for name, each in policy.medium.compared(columns).items()}
    rows = [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]
    return [replace(shot, scores=shot.scores | row) for shot, row in zip(shots, rows, strict=True)]


def all_shots(
    policy: Policy,
    sampler: Sampler,
    prompts: PromptSet,
    per_prompt: int,
    rewards: Sequence[Reward],
    timeout_s: float | None = None,
    first_seed: int = 0,
    keeping: Keeping | None = None,
    kl_pictures: int = 0,
) -> list[Shot]:
    """`per_prompt` pictures of every prompt, each with its own seed.

    Ranks share the prompts, and get all.

    Sample j of prompt i has the seed first_seed + j P + i, where P is the number of prompts of the
    whole set: more samples or more prompts leave those that there are as they are. The KL to the
    base is measured of the first sample of `kl_pictures` prompts, evenly spaced over the set.
    """
    repeated = [prompt for prompt in prompts for _ in range(per_prompt)]
    seeds = [
        first_seed + j * (prompts.whole or len(prompts)) + i
        for i in range(len(prompts))
        for j in range(per_prompt)
    ]
    measured = measured_numbers(len(prompts), per_prompt, kl_pictures)
    if keeping:
        few = trajectories.chosen(len(prompts), per_prompt)
        keys = frozenset(keeping.store.key(repeated[i], seeds[i]) for i in few)
        keeping = replace(keeping, walked=keys)
    arguments = (policy, sampler, repeated, seeds, rewards, per_prompt, timeout_s)
    return shared(*arguments, keeping, measured)


def measured_numbers(prompts: int, per_prompt: int, kl_pictures: int) -> set[int]:
    """Of the samples of so many prompts, those whose trajectories are compared with the base's."""
    count = min(kl_pictures, prompts)
    return {prompts * i // count * per_prompt for i in range(count)}


def shared(
    policy: Policy,
    sampler: Sampler,
    prompts: Sequence[Prompt],
    seeds: Sequence[int],
    rewards: Sequence[Reward],
    per_prompt: int = 1,
    timeout_s: float | None = None,
    keeping: Keeping | None = None,
    measured: Collection[int] = (),
) -> list[Shot]:
    """What `shoot` returns, on every rank: each makes and judges some of the blocks."""
    state, size = ranks.state(), block_size(per_prompt, sampler.batch_size)
    block = ranks.share(-(-len(prompts) // size), state.process_index, state.num_processes)
    mine = slice(block.start * size, block.stop * size)
    own = {i - mine.start for i in measured}
    with ranks.together():
        arguments = (policy, sampler, prompts[mine], seeds[mine], rewards, per_prompt, timeout_s)
        shots = _shoot(*arguments, keeping, own) if block else []
    return _compared(policy, ranks.gather(shots))


def write(
    folder: Path,
    columns: Mapping[str, Mapping[str, Sequence[Shot]]],
    checkpoints: Mapping[str, str | None] | None = None,
    encode: Encode | None = None,
    **more: Any,
) -> dict[str, Any]:
    """Write evaluation/ from columns[set name][column name]: images, samples.jsonl, results.json,
    prompts.csv.

    It takes the place of an earlier evaluation when it is whole. The first column is the reference.
    `checkpoints` says whose weights a column shows; `encode` gives the features by which diversity
    is measured; `more` goes into results.json.
    """
    names = list(next(iter(columns.values())))
    checkpoints = checkpoints or {}
    rows: list[dict[str, Any]] = []
    made: list[NDArray[np.float32]] = []
    with whole(folder) as aside:
        (aside / "images").mkdir(parents=True)
        for (set_name, shots), column in product(columns.items(), names):
            stem = re.sub(r"[^\w.@+=-]", "_", column)
            for shot in shots[column]:
                image = f"images/{set_name}_{shot.seed:05d}_{stem}.png"
                _put(shot, aside / image)
                trajectories.copy(shot.file, aside / trajectory(image))
                row = {"set": set_name, "prompt": shot.prompt, "seed": shot.seed, "column": column}
                row |= {"task": shot.task} if shot.task else {}
                row |= {"checkpoint": checkpoints.get(column), "image": image, "kl": shot.kl}
                rows.append(clean({**row, "scores": shot.scores}))
            if encode is not None:
                made.append(encode([shot.image for shot in shots[column]]))
            if texts := {f"seed_{shot.seed}": shot.text for shot in shots[column] if shot.text}:
                file = aside / f"{set_name}_{stem}.fasta"
                file.write_text(fasta([*texts], [*texts.values()]), encoding="utf-8")
        lines = "".join(f"{json.dumps(row)}\n" for row in rows)
        (aside / "samples.jsonl").write_text(lines, encoding="utf-8")
        last = checkpoints.get(names[-1])
        features = np.concatenate(made) if made else None
        if features is not None:
            save_file({"features": features}, aside / numbers.FEATURES)
        results = {**numbers.summarize(rows, names, features), "checkpoint": last, **more}
        (aside / "results.json").write_text(json.dumps(clean(results), indent=1), encoding="utf-8")
        _write_table(aside / "prompts.csv", numbers.gains(rows, names))
    return results


def _put(shot: Shot, place: Path) -> None:
    """The picture, without taking room twice where the folder that keeps it is at hand."""
    if shot.file is None or not shot.file.is_file():
        shot.image.save(place)
        return
    try:
        os.link(shot.file, place)
    except OSError:  # another file system, or one without links
        shutil.copyfile(shot.file, place)


def _write_table(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with open(file, "w", newline="", encoding="utf-8") as lines:
        writer = csv.DictWriter(lines, [*rows[0]] if rows else [])
        writer.writeheader()
        writer.writerows(rows)
