"""The evaluation of a run folder: what `ddpo evaluate` does."""

import logging
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from ddpo import config, prompts
from ddpo.config import Config, checks
from ddpo.evaluation import card, evidence, matched
from ddpo.evaluation import page as report
from ddpo.evaluation.table import table
from ddpo.models._precision import Precision
from ddpo.parallel import launcher, ranks
from ddpo.records import checkpoint
from ddpo.runs import build
from ddpo.runs import folder as run_folder
from ddpo.runs.finished import Run

log = logging.getLogger("ddpo")


def judge(settings: Config, wanted: str = "last") -> dict[str, Any]:
    """Base and tuned model on seen and held-out prompts at the same seeds: what results.json holds.

    `settings` are what the pictures are made with; `wanted` is the checkpoint, as in
    `checkpoint.find`.
    Raises UserError for what cannot be, before anything is written.
    """
    launcher.check(settings.model.dtype)
    checks.check_rewards(settings)
    checkpoint.find(Path(settings.run_dir), wanted)  # before a model is loaded for nothing
    everyone: list[Precision] = ranks.gather([build.precision(settings)])
    settings = config.in_precision(settings, everyone[0])  # rank 0's, where it is to be chosen
    run = Run(settings.run_dir, settings=settings)
    settings, used = run.config, run.remember(wanted)
    rewards = build.all_rewards(settings, run.policy)
    columns: dict[str, dict[str, list[matched.Shot]]] = {}
    for prompt_set in tqdm(build.evaluation_sets(settings), desc="evaluating", disable=None):
        per_prompt = settings.evaluation.samples_per_prompt
        timeout_s = settings.trainer.reward_timeout_s
        seed = settings.evaluation.seed
        arguments = (run.policy, run.sampler, prompt_set, per_prompt, rewards, timeout_s, seed)
        columns[prompt_set.name] = {}
        for column, weights in (("base", "base"), ("tuned", used)):
            with run.policy.weights(weights):
                columns[prompt_set.name][column] = matched.all_shots(*arguments)
    if not ranks.state().is_main_process:
        return {}
    folder = Path(settings.run_dir)
    more = {"versions": run_folder.versions(), "config": config.flat(settings)}
    results = matched.write(folder / "evaluation", columns, used, **more)
    page = report.write(folder)
    card.write(folder)
    for row in evidence.rows(evidence.read(folder)):
        log.info("%s", row["sentence"])
    log.info("open %s", page)
    return results


def grid(run_dir: str, prompt_source: str | None, count: int, seed: int) -> Image.Image:
    """Prompts down.

    Base, every kept checkpoint across; the trained reward's scores under each picture.
    """
    run = Run(run_dir)
    chosen = (
        build.prompt_set(run.config)
        if prompt_source is None
        else prompts.named_or_file(prompt_source)
    )
    chosen = [chosen[len(chosen) * i // count] for i in range(min(count, len(chosen)))]
    rewards = build.reward_list(run.config.rewards, run.policy.device, run.config.model.dtype)
    columns: dict[str, list[matched.Shot]] = {}
    timeout_s = run.config.trainer.reward_timeout_s
    arguments = (run.policy, run.sampler, chosen, [seed] * len(chosen), rewards, 1, timeout_s)
    for name in ("base", *run.checkpoints):
        with run.policy.weights(run.remember(name)):
            columns[name if name == "base" else f"iteration {int(name)}"] = matched.shoot(
                *arguments
            )
    rows = list(zip(*columns.values(), strict=True))
    captions = [
        ["  ".join(f"{shot.scores[r.name]:.3f}" for r in rewards) for shot in row] for row in rows
    ]
    cells = [[shot.image for shot in row] for row in rows]
    return table(cells, [prompt.text for prompt in chosen], list(columns), captions)
