"""An evaluation of anything: what `ddpo evaluate` does."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import torch

from ddpo import config, rewards
from ddpo.building import build
from ddpo.config import Config, checks
from ddpo.errors import UserError
from ddpo.evaluation import card, evidence, matched
from ddpo.evaluation import page as report
from ddpo.evaluation.matched import Keeping, Shot
from ddpo.models import Policy
from ddpo.models._precision import Precision
from ddpo.parallel import launcher, ranks
from ddpo.parallel.progress import Progress
from ddpo.prompts import PromptSet
from ddpo.rewards import Reward
from ddpo.rollout.divergence import comparable
from ddpo.rollout.store import Store, digest
from ddpo.runs import folder as run_folder
from ddpo.runs.finished import Run
from ddpo.runs.targets import Target, kinds, resolve
from ddpo.scoring.encoding import Encode, encoder

log = logging.getLogger("ddpo")

PICTURES = "pictures"
"""The folder beside evaluation/ that keeps every sample, so that none is made twice."""

NOT_SEEN = (
    "batch_size",
    "sde_window",
    "pretrained",
    "loras",
    "gradient_checkpointing",
    "offload",
)
"""Options of a sampler and a model by which samples do not differ, once the weights are known."""

Columns = dict[str, dict[str, list[Shot]]]
"""By set, then by column."""


def judge(settings: Config, wanted: str = "last") -> dict[str, Any]:
    """Base and tuned model of the run in `settings.run_dir`: what results.json holds.

    `settings` are what the pictures are made with; `wanted` is the checkpoint, as in
    `checkpoint.find`. Raises UserError for what cannot be, before anything is written.
    """
    targets = resolve(kinds([settings.run_dir], wanted), settings, {})
    own = [replace(target, settings=settings) for target in targets]
    return compare(own, settings, Path(settings.run_dir))


def compare(targets: Sequence[Target], settings: Config, out: Path) -> dict[str, Any]:
    """All columns on all sets of prompts at the same seeds, into out/evaluation.

    Samples are kept in out/pictures, and what is there is not made again. Raises UserError for what
    cannot be, before anything is written.
    """
    launcher.check(settings.model.dtype)
    checks.check_rewards(settings, trains=False)
    targets = [_settled(target) for target in targets]
    sets = build.evaluation_sets(settings)
    of_set = settings.evaluation.samples_per_prompt * sum(map(len, sets))
    columns: Columns = {each.name: {} for each in sets}
    judges: list[Reward] | None = None
    run: Run | None = None
    bases: list[Run] = []
    with Progress(
        of_set * len(targets), not ranks.state().is_main_process, ranks.state().num_processes
    ) as progress:
        for number, target in enumerate(targets):
            run = _opened(target, run)
            if judges is None:
                judges = _kept_rewards(target.settings, run.policy, out / PICTURES)
            build.check_media([*settings.rewards, *settings.eval_rewards], run.policy)
            weights = "base" if target.checkpoint == "base" else run.remember(target.checkpoint)
            kl_pictures = settings.evaluation.kl_pictures
            base = _base_of(target, run, bases) if kl_pictures else None
            if kl_pictures and _is_base(run, targets[number + 1 :]):
                bases.append(run)
            keeping = _keeping(run, weights, out / PICTURES, progress, base)
            if weights == "base" and base is None:
                kl_pictures = 0
            for each in sets:
                with run.policy.weights(weights):
                    columns[each.name][target.column] = _shots(
                        run, each, judges, keeping, kl_pictures
                    )
    if not ranks.state().is_main_process:
        return {}
    more = {"versions": run_folder.versions(), "config": config.flat(_recorded(targets, settings))}
    whose = {t.column: None if t.checkpoint == "base" else t.checkpoint for t in targets}
    more["targets"] = {target.column: _origin(target) for target in targets}
    encode = run and _encoder(targets[0].settings, run.policy)
    results = matched.write(out / "evaluation", columns, whose, encode, **more)
    _tell(out, results)
    return results


def _settled(target: Target) -> Target:
    """With rank 0's choice for `model.dtype: auto`; a window of steps belongs to training.

    Raises UserError for a size of calls that only a training finds.
    """
    shown = target.settings.evaluation.sampler
    for place, own in (("", target.settings.sampler), ("evaluation.", shown)):
        if own is not None and own.batch_size == "auto":
            raise UserError(
                f"{place}sampler.batch_size: auto is found by a training, and its run remembers "
                f"the number; give one here, as --{place}sampler.batch_size 8"
            )
    everyone: list[Precision] = ranks.gather([build.precision(target.settings)])
    settings = config.in_precision(target.settings, everyone[0])
    sampler = settings.sampler.model_copy(update={"sde_window": None})
    settings = settings.model_copy(update={"sampler": sampler})
    base = target.base and config.in_precision(target.base, everyone[0])
    return replace(target, settings=settings, base=base)


def _recorded(targets: Sequence[Target], settings: Config) -> Config:
    """What results.json says the pictures were made with: the last column's model."""
    own = targets[-1].settings
    return own.model_copy(update={"run_dir": settings.run_dir})


def _origin(target: Target) -> dict[str, Any]:
    """Whose pictures a column shows."""
    model = target.settings.model
    run = str(target.run) if target.run and target.checkpoint != "base" else None
    return {
        "pretrained": model.pretrained,
        "loras": list(model.loras),
        "run": run,
        "checkpoint": target.checkpoint if run else None,
    }


def _opened(target: Target, before: Run | None) -> Run:
    """The target's model; that of the column before, where it is the same."""
    folder, settings = Path(target.run or target.settings.run_dir), target.settings
    if before is None or (before.config.model, before.config.lora) != (
        settings.model,
        settings.lora,
    ):
        return Run(folder, settings=settings)
    if folder == before.folder:
        return before
    for name in [*before.policy.snapshots]:  # another run's checkpoints have the same names
        if name != "base":
            del before.policy.snapshots[name]
    run = Run(folder, settings=settings, policy=before.policy)
    run.digest = before.digest
    return run


def _is_base(run: Run, later: Sequence[Target]) -> bool:
    """Whether one of the columns that follow departs from this model."""
    return any(each.base is not None and each.base.model == run.config.model for each in later)


def _base_of(target: Target, run: Run, opened: Sequence[Run]) -> Run | None:
    """The model that a column without a base of its own departs from; None where it has one, is the
    first, or goes through other states than that.

    It is one of those `opened`, if it is among them; it stays in memory beside the column's.
    """
    if target.base is None:
        return None
    wanted = target.base.model
    found = next((each for each in opened if each.config.model == wanted), None)
    if found is None:
        sections = {"model": wanted, "lora": target.base.lora}
        settings = target.settings.model_copy(update=sections)
        found = Run(target.settings.run_dir, settings=settings)
    ours, theirs = ((each.policy, each.sampler) for each in (run, found))
    return found if comparable(ours, theirs) else None


def _kept_rewards(settings: Config, policy: Policy, folder: Path) -> list[Reward]:
    """All rewards, each asked only for what the folder does not hold yet of it."""
    both = [*settings.rewards, *settings.eval_rewards]
    made = build.all_rewards(settings, policy)
    kept = []
    for wanted, reward in zip(both, made, strict=True):
        known = "unknown" not in reward.version.split("-") and wanted.cache is None
        identity = [wanted.name, reward.version, dict(wanted.params), settings.model.dtype]
        kept.append(rewards.kept(reward, str(folder), identity) if known else reward)
    return kept


def _keeping(
    run: Run, weights: str, folder: Path, progress: Progress, reference: Run | None
) -> Keeping:
    """Where the samples of a column are kept, and all that they depend on.

    `reference` is the model to which its KL is measured, where the column's own is not the base.
    """
    policy, settings = run.policy, run.config
    own = settings.evaluation.sampler or settings.sampler
    of_sampler = {k: v for k, v in config.flat(own).items() if k not in NOT_SEEN}
    of_model = {k: v for k, v in config.flat(settings.model).items() if k not in NOT_SEEN}
    base = run.base_digest()
    identity = {
        "weights": [
            base,
            *([digest(policy.snapshots[weights].items())] if weights != "base" else []),
        ],
        "sampler": of_sampler,
        "model": of_model,
        "device": policy.device.type,
        "versions": [torch.__version__, diffusers.__version__],
    }
    chain = reference and (reference.policy, reference.sampler)
    store = Store(folder, policy.medium, identity, reference.base_digest() if reference else "")
    return Keeping(store, progress.add, base=chain)


def _shots(
    run: Run, prompt_set: PromptSet, judges: Sequence[Reward], keeping: Keeping, kl_pictures: int
) -> list[Shot]:
    own, timeout_s = run.config.evaluation, run.config.trainer.reward_timeout_s
    arguments = (run.policy, run.sampler, prompt_set, own.samples_per_prompt, judges)
    return matched.all_shots(*arguments, timeout_s, own.seed, keeping, kl_pictures)


def _encoder(settings: Config, policy: Policy) -> Encode | None:
    return encoder(settings.evaluation.features, settings.model.pretrained, policy)


def _tell(out: Path, results: Mapping[str, Any]) -> None:
    """The page, the card of a run, and a line for each set and reward."""
    page = report.write(out)
    if (out / "config.yaml").is_file():
        card.write(out)
    found = evidence.read(out)
    for row in evidence.rows(found):
        log.info("%s", row["sentence"])
    for row in evidence.alone(found):
        log.info("%(score)s on %(set)s: %(mean)s ± %(se)s (%(n)d samples)", row)
    log.info("open %s", page)
