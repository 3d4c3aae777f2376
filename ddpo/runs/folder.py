"""The folder of a run: taken, refused or continued.

It says where the run came from, and holds its model card.
"""

import importlib.metadata
import json
import logging
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch

from ddpo import config
from ddpo.config import Config
from ddpo.errors import DISK_FULL, Stopped, UserError
from ddpo.parallel import ranks
from ddpo.plugins import python_objects
from ddpo.records import checkpoint
from ddpo.records.files import remove, whole
from ddpo.rewards import Reward, short_name

log = logging.getLogger("ddpo")

OURS = [
    "config.yaml",
    "provenance.json",
    "metrics.jsonl",
    "evaluations.jsonl",
    "index.html",
    "README.md",
    "samples",
    "checkpoints",
    "lora",
    "evaluation",
    "pictures",
    "profile",
    "tensorboard",
    "wandb",
]
"""What a run writes, and all that --overwrite deletes."""

PACKAGES = [
    "torch",
    "torchvision",
    "diffusers",
    "transformers",
    "accelerate",
    "peft",
    "safetensors",
    "numpy",
    "pillow",
]
MAY_CHANGE = (
    "trainer.iterations",
    "log.",
    "checkpoint.",
    "evaluation.",
    "eval_rewards",
    "run_dir",
    "trainer.micro_batch",
    "sampler.batch_size",
    "model.gradient_checkpointing",
    "model.compile",
    "parallel.",
    "trainer.reward_timeout_s",
    "trainer.max_missing",
)
"""Options that a resume may change: what is written, how far it goes, how the work is cut."""


def check(folder: Path, resume: bool, overwrite: bool) -> None:
    """Raises UserError where a new run may not be written; touches nothing."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"run_dir: {folder} is a file; name a folder")
    if (folder / "config.yaml").exists() and not (resume or overwrite):
        ways = f"continue it with --resume {folder}, or give --overwrite"
        raise UserError(f"run_dir: {folder} already holds a run; {ways}")
    parent = next(path for path in [folder, *folder.absolute().parents] if path.exists())
    if not os.access(parent, os.W_OK):
        raise UserError(f"run_dir: {parent} cannot be written to; name another folder")


def check_changes(folder: Path, new: Config) -> None:
    """Raises UserError naming an option that differs from the run's own and may not.

    A precision that was chosen for the run stays chosen, and so do the sizes of its calls: `auto`
    becomes them.
    """
    old = config.load(folder / "config.yaml")
    if new.model.dtype == "auto":
        new.model.dtype = old.model.dtype
    if new.trainer.micro_batch == "auto":
        new.trainer.micro_batch = old.trainer.micro_batch
    for given, found in (
        (new.sampler, old.sampler),
        (new.evaluation.sampler, old.evaluation.sampler or old.sampler),
    ):
        if given is not None and given.batch_size == "auto":
            given.batch_size = found.batch_size
    for place in config.changed(old, new):
        if not place.startswith(MAY_CHANGE):
            no = "which cannot be continued with another value"
            raise UserError(f"{place}: differs from the run in {folder}, {no}")


def check_given(settings: Config) -> None:
    """Raises UserError for a reward that the run was given from Python, and this process was not.

    What can be imported under its name might be another thing by now: a run is not continued on
    trust.
    """
    for section in config.REWARDS:
        for i, reward in enumerate(getattr(settings, section)):
            name = reward.name
            if name.startswith(python_objects.MARK) and not isinstance(name, python_objects.Given):
                raise UserError(f"{section}.{i}.name: {python_objects.absent(name)}")


def check_origin(folder: Path, new: Mapping[str, Any]) -> None:
    """Raises UserError when the prompts are not those of the run.

    A changed reward may be a mended one.
    """
    try:
        old = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
        prompts, rewards = old["prompt_set_sha256"], old["rewards"]
    except (OSError, ValueError, LookupError):
        return
    if prompts != new["prompt_set_sha256"]:
        raise UserError(
            f"prompts: no longer those of the run in {folder}, which cannot be continued with "
            f"others (sha256 {new['prompt_set_sha256'][:12]}, was {prompts[:12]})"
        )
    for name in [
        name for name, version in new["rewards"].items() if rewards.get(name, version) != version
    ]:
        log.warning("reward %s is another version than the run in %s began with", name, folder)


def create(folder: Path, settings: Config, overwrite: bool, provenance: Mapping[str, Any]) -> None:
    """config.yaml first, then provenance.json; with `overwrite`, an earlier run's files go before.

    Raises UserError where nothing can be written, Stopped on a full disk; a new folder is then gone
    again.
    """
    made = [path for path in [folder, *folder.absolute().parents] if not path.exists()]
    try:
        if overwrite and (folder / "config.yaml").exists():
            # config.yaml last: until then the folder holds a run, and says so
            for name in reversed(OURS):
                remove(folder / name)
        with whole(folder / "config.yaml") as aside:
            aside.write_text(config.dump(settings), encoding="utf-8")
        with whole(folder / "provenance.json") as aside:
            aside.write_text(json.dumps(provenance, indent=1), encoding="utf-8")
    except OSError as error:
        for path in made[-1:]:
            shutil.rmtree(path, ignore_errors=True)
        line = f"run_dir: {folder} cannot be written to ({error.strerror or error})"
        if error.errno in DISK_FULL:
            raise Stopped(f"{line}; make room and give the same command again") from error
        raise UserError(f"{line}; name another folder") from error


def is_finished(folder: Path) -> bool:
    """Whether lora/ and the card were written after the last checkpoint."""
    lora, card = folder / "lora", folder / "README.md"
    last = max((path.stat().st_mtime for path in checkpoint.all_of(folder)), default=0.0)
    return (
        lora.is_dir() and card.is_file() and min(lora.stat().st_mtime, card.stat().st_mtime) >= last
    )


def versions() -> dict[str, str]:
    """The versions of ddpo, Python and the packages that decide numbers."""
    versions = {"ddpo": _version("ddpo"), "python": platform.python_version()}
    return versions | {name: _version(name) for name in PACKAGES}


def provenance(prompt_hash: str, rewards: Sequence[Reward], settings: Config) -> dict[str, Any]:
    """What is needed to say, later, what this run was."""
    named = [
        (reward.name, reward.label) for each in config.REWARDS for reward in getattr(settings, each)
    ]
    given = {
        short_name(*each): str(each[0]) for each in named if each[0].startswith(python_objects.MARK)
    }
    device = cast(torch.device, ranks.state().device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    return {
        "versions": versions(),
        "git": _git(),
        "num_processes": ranks.state().num_processes,
        "device": name or "cpu",
        "cpu_threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "system": platform.system(),
        "prompt_set_sha256": prompt_hash,
        "rewards": {reward.name: reward.version for reward in rewards},
        "rewards_from_python": given,
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _git() -> dict[str, Any] | None:
    """Commit and whether the tree differs from it, of the code that runs.

    It is None outside a checkout.
    """

    def git(*words: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "modified": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return None
