"""An option is obeyed or refused, by train, train --resume and plan: each is named here with what
it changes.

The options are those of the real parser. One that stands in no table fails its test, as does one
that is accepted and changes nothing.
"""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import cache, partial
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import helpers
import pytest
import torch
from jsonschema import Draft202012Validator
from option_cases import Flags, places, world
from PIL import Image

from ddpo import advantages, config, plugins, samplers, train
from ddpo.advantages import Advantage
from ddpo.building import build
from ddpo.commands import plan
from ddpo.config import Config
from ddpo.errors import UserError
from ddpo.evaluation import matched
from ddpo.evaluation.matched import Shot
from ddpo.planning import plan as planning
from ddpo.runs import folder as run_folder
from ddpo.runs import session as finetuning
from ddpo.samplers import MaskSchedule, Schedule
from ddpo.samplers._diffusers import rectified_flow
from ddpo.training.credit import Mixture
from ddpo.training.trainer import Trainer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with world(tmp_path_factory.mktemp("options"), run=False) as root:
        yield root


# train: what the configuration makes of the objects that do the work, and of what happens when

BRIGHT = "[{name: brightness}]"
TWO_REWARDS = "[{name: brightness}, {name: jpeg_compressibility}]"

TRAIN: dict[str, Flags | tuple[Flags, Flags]] = {
    "model.name": (["--plugins", "[own]"], ["--model.name", "own_model"]),
    "model.pretrained": ["other"],
    "model.dtype": ["bf16"],
    "model.loras": ["[lora]"],
    "model.gradient_checkpointing": ["true"],
    "model.compile": ["true"],
    "model.size": ["[16, 24]"],
    "model.upcast_vae": (["--model.dtype", "bf16"], ["--model.upcast_vae", "true"]),
    "model.vae_slicing": ["true"],
    "model.vae_tiling": ["true"],
    "model.offload": ["true"],
    "model.taste": (
        ["--rewards", TWO_REWARDS, "--advantage.name", "group"],
        ["--model.taste", "{name: weights, dim: 2}"],
    ),
    "lora.rank": ["2"],
    "lora.alpha": ["8"],
    "lora.target_modules": ["[to_q]"],
    "lora.text_encoder": ["true"],
    "sampler.name": ["ddpm"],
    "sampler.num_steps": ["2"],
    "sampler.guidance_scale": ["3"],
    "sampler.batch_size": ["4"],
    "sampler.eta": ["0.5"],
    "sampler.negative_prompt": ["a blurry picture"],
    "sampler.sde_window": ["{size: 2}"],
    "prompts.name": ["activities"],
    "prompts.path": ["words.txt"],
    "prompts.dataset": ["data"],
    "prompts.split": (["--prompts.dataset", "data"], ["--prompts.split", "test"]),
    "prompts.column": (["--prompts.dataset", "data"], ["--prompts.column", "text"]),
    "prompts.template": ["a painting of {prompt}"],
    "prompts.sets": ["[{name: animals}, {name: activities, weight: 2}]"],
    "rewards.0.name": ["jpeg_incompressibility"],
    "rewards.0.weight": ["2"],
    "rewards.0.params.quality": ["50"],
    "rewards.0.min": ["-1"],
    "rewards.0.max": ["1"],
    "rewards.0.cache": ["kept"],
    "rewards.0.label": ["size"],
    "eval_rewards.0.name": ["brightness"],
    "eval_rewards.0.params.quality": ["50"],
    "eval_rewards.0.cache": ["kept"],
    "eval_rewards.0.label": ["judged"],
    "objective.name": ["grpo"],
    "objective.clip_range": ["1e-2"],
    "objective.kl_weight": ["0.1"],
    "objective.block_size": ["2"],
    "objective.timestep_fraction": ["0.5"],
    "objective.timestep_window": ["[0, 2]"],
    "objective.drop_last": ["1"],
    "objective.guidance_scale": ["1"],
    "objective.draws": (["--objective.name", "rwr"], ["--objective.draws", "2"]),
    "objective.noise_window": (
        ["--objective.name", "rwr"],
        ["--objective.noise_window", "[0.5, 1]"],
    ),
    "objective.offline": (
        ["--objective.name", "dpo", "--prompts.path", "pairs.jsonl", "--advantage.name", "batch"],
        ["--objective.offline", "true"],
    ),
    "advantage.name": ["batch"],
    "advantage.clip": ["1"],
    "advantage.per_reward": ["true"],
    "advantage.keep_extremes": ["1"],
    "advantage.std": ["none"],
    "trainer.iterations": ["3"],
    "trainer.prompts_per_iteration": ["8"],
    "trainer.samples_per_prompt": ["4"],
    "trainer.shared_noise": ["true"],
    "trainer.minibatches": ["1"],
    "trainer.epochs": ["2"],
    "trainer.micro_batch": ["3"],
    "trainer.decode_batch": (
        ["--objective.name", "draft", "--rewards", BRIGHT],
        ["--trainer.decode_batch", "2"],
    ),
    "trainer.optimizer": ["adafactor"],
    "trainer.while_sampling": ["true"],
    "trainer.ratio_gate": ["1e-3"],
    "trainer.lr": ["1"],
    "trainer.lr_schedule": ["cosine"],
    "trainer.warmup_steps": ["2"],
    "trainer.betas": ["[0.5, 0.6]"],
    "trainer.adam_eps": ["1e-3"],
    "trainer.weight_decay": ["0.1"],
    "trainer.max_grad_norm": ["2"],
    "trainer.reward_timeout_s": ["5"],
    "trainer.max_missing": ["0.1"],
    "ema.decay": ["0.5"],
    "checkpoint.every": ["1"],
    "checkpoint.keep": (["--checkpoint.every", "1"], ["--checkpoint.keep", "{last: 1, spaced: 0}"]),
    "checkpoint.keep_last": (["--checkpoint.every", "1"], ["--checkpoint.keep_last", "1"]),
    "evaluation.prompts": (["--evaluation.every", "1"], ["--evaluation.prompts", "activities"]),
    "evaluation.every": ["2"],
    "evaluation.samples_per_prompt": (
        ["--evaluation.every", "1"],
        ["--evaluation.samples_per_prompt", "3"],
    ),
    "evaluation.num_prompts": (["--evaluation.every", "1"], ["--evaluation.num_prompts", "1"]),
    "evaluation.seed": (["--evaluation.every", "1"], ["--evaluation.seed", "7"]),
    "evaluation.features": (["--evaluation.every", "1"], ["--evaluation.features", "emoji"]),
    "evaluation.best": (["--evaluation.every", "1"], ["--evaluation.best", "front"]),
    "evaluation.on_over_optimization": ["stop"],
    "evaluation.kl_pictures": (["--evaluation.every", "1"], ["--evaluation.kl_pictures", "1"]),
    "evaluation.sampler": ["{num_steps: 2}"],
    "log.project": (["--log.trackers", "[wandb]"], ["--log.project", "mine"]),
    "log.trackers": ["[tensorboard]"],
    "log.images": ["1"],
    "log.every": (["--log.images", "1"], ["--log.every", "1"]),
    "plugins": ["[own]"],
    "seed": ["18446744073709551615"],
    "run_dir": ["elsewhere"],
}
"""Option -> a value that is not the smoke run's, or what must be set first and the change."""

REFUSED = {
    "eval_rewards.0.weight": "judges are not summed",
    "eval_rewards.0.min": "a judge gates nothing",
    "eval_rewards.0.max": "a judge gates nothing",
}

EVENTS: list[Any] = []
BASE = [
    *helpers.smoke(Path("new"), "--trainer.iterations", "2", "--evaluation.num_prompts", "2"),
    "--eval_rewards",
    "[{name: jpeg_compressibility, label: judge}]",
]


class Trackers:
    """In the place of tensorboard and wandb: says that it was asked for."""

    def __init__(self, names: list[str], folder: Path, settings: Any, project: str) -> None:
        EVENTS.append((names, project))

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None


POLICIES: dict[str, Any] = {}
MAKE = build.policy


def policy(settings: Config, *more: Any) -> Any:
    """Models take longest to build: one for each that differs."""
    key = repr((settings.model, settings.lora, settings.seed))
    POLICIES[key] = POLICIES.get(key) or MAKE(settings, *more)
    return POLICIES[key]


def iterate(trainer: Trainer) -> dict[str, float]:
    trainer.iteration += 1
    return {"iteration": trainer.iteration, "reward/mean": 0.0, "clip_frac": 0.0, "time/total": 1.0}


def shoot(policy: Any, sampler: Any, prompts: Any, seeds: Any, rewards: Any, *more: Any) -> Any:
    names = [reward.name for reward in rewards]
    EVENTS.append([[prompt.text for prompt in prompts], list(seeds), names, more[3:]])
    scores = dict.fromkeys([*(reward.name for reward in rewards), *policy.medium.guards], 0.0)
    return [
        Shot(p.text, s, Image.new("RGB", (8, 8)), scores)
        for p, s in zip(prompts, seeds, strict=True)
    ]


@pytest.fixture(scope="module")
def watch(folder: Path) -> Iterator[Callable[[Flags], str]]:
    """What a training with these flags is made of, does and leaves; no network is computed."""

    @cache
    def watched(flags: tuple[str, ...]) -> str:
        EVENTS.clear()
        os.environ[plugins.VARIABLE] = ""
        session = finetuning.Session(*train.arguments([*BASE, *flags]))
        made = facts(session)
        session.train()
        left = sorted(str(path) for path in session.folder.rglob("*"))
        shutil.rmtree(session.folder)
        return repr([made, *EVENTS, left])

    wandb = ModuleType("wandb")
    wandb.__spec__ = ModuleSpec("wandb", None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "wandb", wandb)  # it need not be installed
        patch.setattr(build, "policy", policy)
        patch.setattr(Trainer, "iterate", iterate)
        patch.setattr(matched, "_shoot", shoot)
        patch.setattr(run_folder, "_git", lambda: None)
        patch.setattr(finetuning, "Trackers", Trackers)
        patch.setattr(finetuning.Session, "finish", lambda self: None)
        yield lambda flags: watched(tuple(flags))
        POLICIES.clear()


def facts(run: finetuning.Session) -> str:
    """The trainer and the judges, as far as numbers and results depend on them."""
    trainer = run.trainer
    model: Any = trainer.policy
    weights = {**dict(model.unet.named_parameters()), **dict(model.text_encoder.named_parameters())}
    lr = []
    for _ in range(4):
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
        lr.append(trainer.lr_scheduler.get_last_lr())
    plain = (int, float, str, type(None), Path)
    return repr(
        [
            type(model).__name__,
            model.dtype,
            [m.scaling for m in model.unet.modules() if hasattr(m, "scaling")],
            model.unet.is_gradient_checkpointing,
            any(module._compiled_call_impl for module in model.unet.modules()),
            (model.image_size, model.vae_dtype, len(model.offloaded)),
            (model.vae.use_slicing, model.vae.use_tiling),
            type(trainer.optimizer).__name__,
            sorted(model.parameters()),
            [
                (name, weight.double().sum().item(), weight.shape)
                for name, weight in weights.items()
            ],
            [
                (f.name, getattr(trainer.sampler.steps, f.name))
                for f in fields(trainer.sampler.steps)
            ],
            trainer.sampler.guidance_scale,
            trainer.sampler.batch_size,
            trainer.sampler.negative_prompt,
            trainer.sampler.window,
            run.sampler,
            trainer.prompts.name,
            trainer.prompts.hash,
            [each.name for each in run.sets],
            [run.panel.settings.evaluation.best, run.settings.evaluation.on_over_optimization],
            run.encode is None,
            [(r.name, r.weight, r.version, r.min, r.max, worth(r)) for r in run.judges],
            getattr(trainer.scorer, "timeout_s", None),  # recorded pairs have no scorer
            getattr(trainer.scorer, "group_size", None),
            type(trainer.scorer).__name__,
            trainer.objective,
            trainer.columns,
            trainer.gradient_layers is None,
            trainer.sizes,
            credited(trainer.mixture),
            trainer.optimizer.defaults,
            lr,
            trainer.ema and trainer.ema.decay,
            plugins.folders("rewards"),
            [
                (f.name, v)
                for f in fields(trainer)
                if isinstance(v := getattr(trainer, f.name), plain)
            ],
        ]
    )


def credited(mixture: Mixture) -> Any:
    """Its fields as plain values, and the advantages that it has made."""
    names = ("per_reward", "clip", "keep_extremes", "max_missing", "recorded")
    return [getattr(mixture, name) for name in names], [
        (name, advantage.name, described(advantage))
        for name, advantage in mixture.advantages.items()
    ]


def described(advantage: Advantage) -> Any:
    """The options of an advantage, be it a function or a class."""
    compute = advantage.compute
    return compute.keywords if isinstance(compute, partial) else vars(compute)


@torch.no_grad()
def worth(reward: Any) -> Any:
    """What it makes of one picture, and whether it keeps that."""
    noise = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return reward.score(noise, ["a fox"], [{}]).tolist(), "cached" in getattr(
        reward.score, "__qualname__", ""
    )


def change(option: str) -> tuple[Flags, Flags]:
    found = TRAIN[option]
    return found if isinstance(found, tuple) else ([], [f"--{option}", *found])


def test_every_option_of_a_training_is_in_the_table(folder: Path) -> None:
    settings, *_ = train.arguments(
        helpers.smoke(Path("new"), "--eval_rewards", "[{name: brightness}]")
    )
    # nf4 needs a package that is not here: see tests/models/test_families.py; shards need two
    # processes: see tests/parallel/test_sharding.py
    elsewhere = {"eval_rewards.0.params.quality", "model.quantize", "parallel.shard"}
    known = {*TRAIN, *REFUSED, *elsewhere}
    assert {*places(settings)} <= known, "give each new option a value that changes something"
    flags = ("--resume RUN_DIR|auto", "--overwrite", "--profile")
    assert flags == train.FLAGS, "see test_run and test_profile for what these do"


@pytest.mark.parametrize("option", TRAIN)
def test_a_training_obeys(option: str, watch: Callable[[Flags], str]) -> None:
    before, flags = change(option)
    assert watch([*before, *flags]) != watch(before)


def test_nothing_changes_by_itself(watch: Callable[[Flags], str]) -> None:
    """Or the tests above could not fail."""
    assert watch([]) == watch(["--trainer.lr", "3e-4", "--trainer.lr", "1e-3"])


@pytest.mark.parametrize("option", REFUSED)
def test_a_training_refuses(option: str, watch: Callable[[Flags], str]) -> None:
    with pytest.raises(UserError, match=f"^{option}: .*{REFUSED[option]}"):
        watch([f"--{option}", "0.5"])


NAMED = [
    (section, name)
    for section, names in {
        "objective": plugins.names("objectives"),
        "sampler": plugins.names("samplers"),
        "advantage": plugins.names("advantages"),
    }.items()
    for name in names
]


@pytest.mark.parametrize(("section", "name"), NAMED)
def test_the_options_of_what_is_named_arrive(section: str, name: str, folder: Path) -> None:
    """Every objective, sampler and advantage, with every option that its own signature has."""
    # one with a gradient, as some objectives need
    argv = helpers.smoke(Path("new"), f"--{section}.name", name, "--rewards", BRIGHT)
    argv += ["--sampler.num_steps", "8"] if name in ("draft", "drakes") else []
    plain, *_ = train.arguments(argv)
    for option, value in getattr(plain, section).options.items():
        node = config.options(plain)[f"{section}.{option}"].node
        other = next(str(v).lower() for v in candidates(node) if v != value)
        settings, *_ = train.arguments([*argv, f"--{section}.{option}", other])
        assert made(section, settings) != made(section, plain), f"{section}.{option} of {name}"


def candidates(node: dict[str, Any]) -> list[Any]:
    """Two values that an option may have, by its JSON Schema."""
    values = [*node.get("enum", ()), True, False, 0.75, 0.5, 4, 3, 2.5, 3.5]
    return [value for value in values if Draft202012Validator(node).is_valid(value)]


def made(section: str, settings: Config) -> str:
    if section == "objective":
        return repr(build.objective(settings))
    if section == "sampler":
        name, steps = settings.sampler.name, settings.sampler.num_steps
        kinds = (helpers.policy().schedule, rectified_flow({}), MaskSchedule(3, 64))
        (schedule,) = (kind for kind in kinds if fits(name, kind))
        return repr(samplers.build(name, schedule, steps, **settings.sampler.options))
    return repr(described(advantages.build(settings.advantage.name, **settings.advantage.options)))


def fits(sampler: str, schedule: Schedule) -> bool:
    """Whether a sampler is for models of this kind."""
    try:
        samplers.build(sampler, schedule, 3)
    except UserError:
        return False
    return True


# train --resume: what may change is obeyed as above, all else is refused by name


def first_flags(option: Any) -> Flags:
    return change(option)[0]


@cache
def begun(flags: tuple[str, ...]) -> Config:
    """The configuration of a run with these flags, in the folder `begun`."""
    settings, *_ = train.arguments([*BASE, "--run_dir", "begun", *flags])
    Path("begun").mkdir(exist_ok=True)
    (Path("begun") / "config.yaml").write_text(config.dump(settings))
    return settings


@pytest.mark.parametrize("option", sorted(TRAIN, key=first_flags))
def test_a_resume_obeys_or_refuses(option: str, folder: Path) -> None:
    before, flags = change(option)
    own = begun(tuple(before))
    if option == "run_dir":
        with pytest.raises(UserError, match="--run_dir: not with --resume"):
            train.arguments(["--resume", "begun", *flags])
        return
    changed, resume, overwrite = train.arguments(["--resume", "begun", *flags])
    assert (resume, overwrite) == (True, False)
    first = config.changed(own, changed)[0]
    if first.startswith(run_folder.MAY_CHANGE):
        run_folder.check_changes(folder / "begun", changed)
    else:
        with pytest.raises(UserError, match=f"^{first}: differs from the run in"):
            run_folder.check_changes(folder / "begun", changed)


# plan: what a training reads, and the number of processes


def test_a_plan_is_of_the_same_configuration(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All words but --processes are a training's."""
    words: list[str] = []
    parse = config.parse
    plans: list[Any] = []

    def seen(argv: list[str], **_: Any) -> Config:
        words[:] = argv
        return parse(BASE)

    monkeypatch.setattr(config, "parse", seen)
    monkeypatch.setattr(planning, "plan", lambda *given: plans.append(given) or 1 / 0)
    flags = [word for option in TRAIN for word in change(option)[1]]
    with pytest.raises(ZeroDivisionError):
        plan.main([*BASE, *flags, "--processes", "3"])
    assert words == [*BASE, *flags] and plans == [(parse(BASE), 3)]
