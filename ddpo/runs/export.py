"""A run's model in other programs' formats, read back by these before it counts.

A reader is right only if its pictures are. So the files are written aside, loaded by a pipeline
that knows nothing of ours, fresh from the base model, and moved into place once its pictures and
its weights equal ours.
"""

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor

from ddpo import samplers
from ddpo.building import build
from ddpo.errors import Stopped, UserError, refusal
from ddpo.models import Exportable, Policy, Trial
from ddpo.parallel.seeds import Purpose
from ddpo.rollout.sample import Sampler, sample
from ddpo.runs.finished import Run

BAR = 1 / 255
"""The largest difference between a picture of the export and ours, in [0, 1]; also the smallest
visible."""

ROUNDING = 1e-5
"""The largest difference between a weight tensor of the export and ours, relative to its largest
weight."""

PICTURES = 3
"""Pictures that are compared. What they do not show, as a layer of little effect, the weights
do."""

Pictures = Float[Tensor, "B *sample"]


def check(folder: Path) -> None:
    """Raises UserError where `folder` may not be written: only a new or an empty one may.

    It touches nothing.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(
            f"--to: {folder} is not empty, and an export replaces nothing; name a new folder"
        )
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--to: {folder} is a file; name a folder")
    if not os.access(_parent(folder), os.W_OK):
        raise UserError(f"--to: {_parent(folder)} cannot be written to; name another folder")


# by default a GPU's convolutions round to TF32, and the two sides would differ
@torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
def export(run: Run, file_format: str, folder: Path) -> str:
    """Write the weights in force of `run`, an fp32 one; returns what was compared.

    The run is of no more use then: its adapter is fused. Raises UserError for what the format
    cannot hold, Stopped when the pictures or weights that are read back are not ours; nothing is at
    `folder` then.
    """
    policy = _exportable(run, file_format)
    trial = _trial(run)
    ours = _our_pictures(run.policy, trial)
    with run.policy.weights("base"):
        base = _our_pictures(run.policy, trial)
    try:
        with TemporaryDirectory(prefix=f".{folder.name}.", dir=_parent(folder)) as scratch:
            aside = Path(scratch, "export")
            aside.mkdir()
            policy.export(file_format, aside, run.folder.resolve().name)
            theirs, weights = _read_back(
                policy, file_format, aside, run.config.model.pretrained, trial
            )
            fault = _picture_fault(run.policy, ours, theirs) or _weight_fault(
                policy.merged_weights(), weights
            )
            if fault:
                raise Stopped(f"export: read back by {policy.reader}, {fault}; nothing was written")
            folder.parent.mkdir(parents=True, exist_ok=True)
            aside.rename(folder)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"--to: {folder} cannot be written ({error}); nothing is left of it"
        ) from error
    change, medium = (ours - base).abs().max().item(), run.policy.medium
    seen = "" if change > BAR else ": what was trained cannot be seen"
    effect = f"the base model's differ {medium.apart(ours, base)}{seen}"
    equal = f"by plain {policy.reader} differ from ours {medium.apart(ours, theirs)}"
    return f"{len(ours)} {medium.shown} {equal}; {effect}"


def _picture_fault(policy: Policy, ours: Pictures, theirs: Pictures) -> str:
    error, worst = (ours - theirs).abs().flatten(1).amax(1).max(0)
    which = f"{policy.medium.shown.removesuffix('s')} {worst + 1} of {len(ours)}"
    row = slice(int(worst), int(worst) + 1)
    apart = policy.medium.apart(ours[row], theirs[row])
    return "" if error <= BAR else f"{which} differs from ours {apart}, more than is allowed"


def _weight_fault(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> str:
    wrong = sorted(ours.keys() ^ theirs.keys()) or [
        name
        for name, weight in ours.items()
        if not (weight - theirs[name]).abs().max() <= ROUNDING * weight.abs().max()
    ]
    first = f"weights differ from ours, the first is {wrong[0]}" if wrong else ""
    return first and f"{len(wrong)} of {len(ours)} {first}"


def _exportable(run: Run, file_format: str) -> Exportable:
    policy: Any = run.policy
    if not hasattr(policy, "check_format"):
        name = run.config.model.name
        raise UserError(f"model.name: {name} has no export; see what it saved in {run.folder}/lora")
    policy.check_format(file_format)
    return policy


@torch.no_grad()
def _our_pictures(policy: Policy, trial: Trial) -> Pictures:
    name = cast(Exportable, policy).trial_sampler
    options = {"eta": trial.eta} if name == "ddim" else {}
    steps = samplers.build(name, policy.schedule, trial.num_steps, **options).to(policy.device)
    sampler = Sampler(steps, trial.guidance_scale, len(trial.prompts), trial.negative_prompt)
    (part,) = sample(policy, sampler, trial.prompts, trial.keys)
    return part.images.cpu()


def _read_back(
    policy: Exportable, file_format: str, folder: Path, pretrained: str, trial: Trial
) -> tuple[Pictures, dict[str, Tensor]]:
    """Raises Stopped where the other program cannot load the files or run what it loaded."""
    try:
        return policy.read_back(file_format, folder, pretrained, trial)
    except Exception as error:  # whatever a library raises: the files are of no use
        if line := refusal(error):
            raise UserError(f"export: {line}; nothing was written") from error
        message = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        fault = f"{policy.reader} cannot read the {file_format} files back ({message})"
        raise Stopped(f"export: {fault}; nothing was written") from error


def _trial(run: Run) -> Trial:
    """The run's prompts, steps, guidance (plain diffusers has none below 1) and eta."""
    settings = run.config.sampler
    chosen = build.prompt_set(run.config)[:PICTURES]
    prompts = [chosen[i] for i in range(len(chosen))]  # to somebody's taste, where there are tastes
    keys = [(Purpose.EVALUATION, seed) for seed in range(len(prompts))]
    scale, eta = max(1.0, settings.guidance_scale), settings.options.get("eta", 1.0)
    return Trial(prompts, keys, settings.num_steps, scale, settings.negative_prompt, eta)


def _parent(folder: Path) -> Path:
    """The nearest folder above that is there."""
    return next(path for path in folder.absolute().parents if path.is_dir())
