"""From a configuration to the objects it names."""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import cast

import torch
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from jaxtyping import Bool
from peft import LoraConfig
from torch import Tensor

from ddpo import advantages, config, objectives, plugins, prompts, rewards, samplers
from ddpo.advantages import Advantage
from ddpo.config import Config, checks
from ddpo.errors import UserError
from ddpo.models import DTYPES, Policy, _precision
from ddpo.models._precision import Precision
from ddpo.objectives import Objective
from ddpo.parallel import ranks
from ddpo.prompts import PromptSet
from ddpo.rewards import Reward
from ddpo.rollout import pairs
from ddpo.rollout.sample import Sampler
from ddpo.scoring.ranking import Ranking
from ddpo.scoring.scorer import Scorer
from ddpo.training.credit import Mixture
from ddpo.training.selection import Columns, Subset
from ddpo.training.trainer import Trainer

log = logging.getLogger("ddpo")


def policy(settings: Config, pipeline: object = None, device: torch.device | None = None) -> Policy:
    """The model with a fresh adapter (the same on every rank: its noise comes from the seed).

    `pipeline` and `device` take the place of `model.pretrained` and of this process's device.
    """
    torch.manual_seed(settings.seed)
    model, lora = settings.model, settings.lora
    adapter = lora and LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha or lora.rank,  # pyright: ignore[reportArgumentType]
        init_lora_weights="gaussian",
        target_modules=list(lora.target_modules),
    )
    adapt = cast(Callable[..., Policy], plugins.load("models", model.name))
    return adapt(
        pipeline or model.pretrained,
        device=device or ranks.state().device,
        dtype=model.dtype,
        loras=[] if pipeline else model.loras,
        lora=adapter,
        train_text_encoder=bool(lora and lora.text_encoder),
        gradient_checkpointing=model.gradient_checkpointing,
        **model.options,
    )


def precision(settings: Config) -> Precision:
    """`model.dtype`; for `auto`, what suits this process's device, for which a CPU may be timed."""
    if settings.model.dtype != "auto":
        return settings.model.dtype
    device = cast(torch.device, ranks.state().device)
    return _precision.choose(device, lambda dtype: policy(config.in_precision(settings, dtype)))


def sampler(settings: Config, model: Policy) -> Sampler:
    """Raises UserError for an invalid sampler, number of steps or eta."""
    own = settings.sampler
    steps = samplers.build(own.name, model.schedule, own.num_steps, **own.options)
    return Sampler(steps.to(model.device), own.guidance_scale, own.batch_size, own.negative_prompt)


def objective(settings: Config) -> Objective:
    """Raises UserError where the configuration gives it nothing to work on."""
    wanted, trainer = settings.objective, settings.trainer
    switches = {"kl_weight": wanted.kl_weight, "block_size": wanted.block_size}
    objective = objectives.build(wanted.name, **switches, **wanted.options)
    _refuse_idle(wanted, objective)
    if objective.compares:
        _two_or_more(trainer.samples_per_prompt, f"objective {objective.name}")
    if wanted.offline and not objective.denoising_errors:
        raise UserError(
            f"objective.offline: {objective.name} needs the steps by which images were sampled; "
            "files have none; take dpo"
        )
    updates = checks.sizes(settings).updates
    if objective.on_policy and updates > 1 and ranks.state().is_main_process:
        log.warning(
            "%s is on-policy: of the %d updates a rollout, only the first is unbiased",
            objective.name,
            updates,
        )
    return objective


def _refuse_idle(wanted: config.Objective, found: Objective) -> None:
    """Options that this objective has no use for. Raises UserError for one that is set."""
    usual, idle, works_on = config.Objective(), ["draws"], "the steps of a trajectory"
    if found.denoising_errors:
        works_on = "denoising errors, not on the steps of a trajectory"
        idle = ["timestep_fraction", "timestep_window", "drop_last"]
    for name in idle:
        if getattr(wanted, name) != getattr(usual, name):
            raise UserError(f"objective.{name}: {found.name} works on {works_on}; leave it out")


def _two_or_more(samples: int, who: str) -> None:
    if samples < 2:
        raise UserError(
            f"trainer.samples_per_prompt: {samples} leaves nothing to compare with, "
            f"and {who} compares within a prompt; take 2 or more"
        )


def advantage(settings: Config) -> Callable[[], Advantage]:
    """Makes one with empty memory.

    Raises UserError where the configuration gives it nothing to compare.
    """
    name = settings.advantage.name
    if getattr(advantages.load(name), "compares", False):
        _two_or_more(settings.trainer.samples_per_prompt, f"advantage {name}")
    return partial(advantages.build, name, **settings.advantage.options)


def subset(settings: Config, stochastic: Bool[Tensor, " T"]) -> Subset:
    """The steps that are trained on.

    Raises UserError where there is none: no log-probability to train on.
    """
    wanted, sampling = settings.objective, settings.sampler
    subset = Subset(wanted.timestep_fraction, wanted.timestep_window, wanted.drop_last)
    if not stochastic.any():
        if sampling.name != "ddim":
            few = sampling.num_steps
            raise UserError(
                f"sampler.num_steps: {few} leaves {sampling.name} no stochastic step; take 2"
            )
        eta = sampling.options.get("eta")
        raise UserError(
            f"sampler.eta: {eta} makes every step deterministic, without a log-probability; "
            "take 0 < eta <= 1"
        )
    if not subset(stochastic, torch.Generator()).any():
        where = "timestep_window" if wanted.timestep_window else "drop_last"
        raise UserError(
            f"objective.{where}: {getattr(wanted, where)} leaves none of the {len(stochastic)} "
            "steps to train on; widen it"
        )
    return subset


def prompt_set(settings: Config) -> PromptSet:
    wanted = settings.prompts
    dataset = (wanted.dataset, wanted.split, wanted.column) if wanted.dataset else None
    return prompts.load(
        wanted.name, wanted.path, wanted.template, settings.objective.offline, dataset
    )


def evaluation_sets(settings: Config) -> list[PromptSet]:
    """The training prompts and the held-out ones, each cut to `evaluation.num_prompts`."""
    sets = [prompt_set(settings)]
    if settings.evaluation.prompts:
        held_out = prompts.load(settings.evaluation.prompts, None, settings.prompts.template)
        if held_out.name == sets[0].name:
            raise UserError(
                f"evaluation.prompts: {held_out.name} is also the name of the training prompts; "
                "rename one"
            )
        sets.append(held_out)
    return [each[: settings.evaluation.num_prompts] for each in sets]


def reward_list(wanted: Sequence[config.Reward], device: torch.device, dtype: str) -> list[Reward]:
    where = device, DTYPES[dtype]
    return [
        rewards.build(r.name, r.weight, r.params, *where, (r.min, r.max), r.cache, r.label)
        for r in wanted
    ]


def all_rewards(settings: Config, model: Policy) -> list[Reward]:
    """What is trained on, then what only judges."""
    both = [*settings.rewards, *settings.eval_rewards]
    return reward_list(both, model.device, settings.model.dtype)


def mixture(settings: Config, judges: Sequence[Reward]) -> Mixture:
    """What samples are credited with. Raises UserError for a reward that has nothing to compare."""
    own = settings.advantage
    for judge in judges:
        if rewards.groupwise(judge.score) and (judge.weight or judge.gates):
            _two_or_more(settings.trainer.samples_per_prompt, f"reward {judge.name}")
    return Mixture(
        judges,
        advantage(settings),
        per_reward=own.per_reward,
        clip=own.clip,
        keep_extremes=own.keep_extremes,
        max_missing=settings.trainer.max_missing,
        recorded=settings.objective.offline,
    )


def optimizer(
    settings: Config, parameters: list[torch.nn.Parameter]
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW and the schedule of its learning rate."""
    own = settings.trainer
    adamw = torch.optim.AdamW(
        parameters, own.lr, betas=own.betas, eps=own.adam_eps, weight_decay=own.weight_decay
    )
    warms_up = own.warmup_steps and own.lr_schedule == "constant"
    schedule = get_scheduler(
        "constant_with_warmup" if warms_up else own.lr_schedule,
        adamw,
        num_warmup_steps=own.warmup_steps,
        num_training_steps=own.iterations * checks.sizes(settings).updates,
    )
    return adamw, schedule


def trainer(settings: Config) -> Trainer:
    """Everything that `Trainer.iterate` needs."""
    own, offline = settings.trainer, settings.objective.offline
    loss, training_prompts = objective(settings), prompt_set(settings)
    advantage(settings)  # refuses before the model is loaded
    folder = Path(str(settings.prompts.path)).expanduser().parent if offline else None
    if folder is not None:
        pairs.check(training_prompts, folder)
    model = policy(settings)
    parameters = list(model.parameters().values())
    steps = sampler(settings, model)
    judges = reward_list(settings.rewards, model.device, settings.model.dtype)
    adamw, schedule = optimizer(settings, parameters)
    ema = EMAModel(parameters, decay=settings.ema.decay) if settings.ema.decay else None
    if ema is not None:
        model.snapshots["average"] = dict(zip(model.parameters(), ema.shadow_params, strict=True))
    columns = Columns(
        subset=Subset() if loss.denoising_errors else subset(settings, steps.steps.stochastic),
        draws=settings.objective.draws or settings.sampler.num_steps,
        guidance_scale=settings.objective.guidance_scale,
    )
    scorer = Scorer(judges, timeout_s=own.reward_timeout_s, group_size=own.samples_per_prompt)
    return Trainer(
        policy=model,
        sampler=steps,
        prompts=training_prompts,
        scorer=Ranking() if offline else scorer,
        mixture=mixture(settings, judges),
        objective=loss,
        optimizer=adamw,
        lr_scheduler=schedule,
        ema=ema,
        sizes=checks.sizes(settings),
        max_grad_norm=own.max_grad_norm,
        seed=settings.seed,
        columns=columns,
        pairs_folder=folder,
    )
