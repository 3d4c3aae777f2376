"""From a configuration to the objects it names."""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from jaxtyping import Bool
from peft import LoraConfig
from torch import Tensor

from ddpo import advantages, config, objectives, plugins, prompts, rewards, samplers
from ddpo.advantages import Advantage
from ddpo.building import sharding
from ddpo.building.personal import personal
from ddpo.building.sampling import evaluation_sampler as evaluation_sampler
from ddpo.building.sampling import sampler as sampler
from ddpo.building.while_sampling import gradient_layers
from ddpo.config import Config, checks
from ddpo.config.sections import PromptSource
from ddpo.errors import UserError
from ddpo.media import IMAGES
from ddpo.models import DTYPES, Policy, _precision
from ddpo.models._precision import Precision
from ddpo.objectives import Objective, Replay
from ddpo.parallel import ranks
from ddpo.prompts import PromptSet
from ddpo.rewards import Reward
from ddpo.rollout import pairs
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
    adapt = cast(Callable[..., Policy], plugins.load("models", model.name))
    if model.taste and getattr(adapt, "taste_layers", None) is None:
        raise UserError(
            f"model.taste: {model.name} has no layers for one; take stable_diffusion, sdxl or flux"
        )
    taste = {"taste": (model.taste.tokens, model.taste.dim)} if model.taste else {}
    adapter = lora and LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha or lora.rank,  # pyright: ignore[reportArgumentType]
        init_lora_weights="gaussian",
        target_modules=list(lora.target_modules or []),
    )
    made = adapt(
        pipeline or model.pretrained,
        device=device or ranks.state().device,
        dtype=model.dtype,
        loras=[] if pipeline else model.loras,
        lora=adapter,
        train_text_encoder=bool(lora and lora.text_encoder),
        gradient_checkpointing=model.gradient_checkpointing,
        **taste,
        **model.options,
    )
    if model.compile is True and pipeline is None:
        if not hasattr(made, "compile"):
            raise UserError(
                f"model.compile: {model.name} has no blocks to compile; set it to false"
            )
        cast(Any, made).compile()
    # a family that does not say what it makes, makes pictures
    made.medium = getattr(made, "medium", IMAGES)
    made.latent_dtype = getattr(made, "latent_dtype", torch.float32)
    return made


def precision(settings: Config) -> Precision:
    """`model.dtype`; for `auto`, what suits this process's device, for which a CPU may be timed."""
    if settings.model.dtype != "auto":
        return settings.model.dtype
    device = cast(torch.device, ranks.state().device)
    return _precision.choose(device, lambda dtype: policy(config.in_precision(settings, dtype)))


def objective(settings: Config) -> Objective:
    """Raises UserError where the configuration gives it nothing to work on."""
    wanted, trainer = settings.objective, settings.trainer
    switches = {"kl_weight": wanted.kl_weight, "block_size": wanted.block_size}
    objective = objectives.build(wanted.name, **switches, **wanted.options)
    _refuse_idle(wanted, objective)
    if objective.compares:
        _two_or_more(trainer.samples_per_prompt, f"objective {objective.name}")
    if replay := objective.pathwise:
        _check_replay(settings, replay)
    elif trainer.decode_batch is not None:
        raise UserError(
            f"trainer.decode_batch: {objective.name} decodes without a gradient, "
            "sampler.batch_size images at a time; leave it out"
        )
    if trainer.ratio_gate != "auto" and not objective.scores_steps:
        raise UserError(
            f"trainer.ratio_gate: {objective.name} works on {objective.works_on} and has no "
            "ratios; leave it out"
        )
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
    usual, works_on = config.Objective(), "the steps of a trajectory"
    idle = of_errors = ["draws", "noise_window"]
    if not found.scores_steps:
        works_on = "denoising errors, not on the steps of a trajectory"
        idle = ["timestep_fraction", "timestep_window", "drop_last"]
    if found.replay is not None:
        works_on, idle = "rewards with a graph", [*idle, *of_errors]
    for name in idle:
        if getattr(wanted, name) != getattr(usual, name):
            raise UserError(f"objective.{name}: {found.name} works on {works_on}; leave it out")


def _check_replay(settings: Config, replay: Replay) -> None:
    """Raises UserError for rewards without a gradient, and for steps that there are not."""
    name, (least, most) = settings.objective.name, replay.last_steps
    if not least <= most <= settings.sampler.num_steps:
        raise UserError(
            f"objective.last_steps: {least if least == most else [least, most]} does not lie "
            f"between 1 and sampler.num_steps {settings.sampler.num_steps}"
        )
    if settings.advantage.per_reward:
        raise UserError(
            f"advantage.per_reward: {name} follows the gradient of the weighted sum of rewards and "
            "compares nothing; leave it out"
        )
    for i, reward in enumerate(settings.rewards):
        kind: Any = plugins.load("rewards", reward.name)
        flaw = ""
        if not getattr(kind, "differentiable", False):
            flaw = "passes no gradient on to the images (differentiable = True)"
        elif rewards.groupwise(kind) or getattr(kind, "pairwise", False):
            flaw = "compares images, and each is differentiated by itself"
        elif reward.cache is not None:
            flaw = "is cached, and a kept value has no gradient"
        if reward.weight and flaw:
            raise UserError(
                f"rewards.{i}: {reward.name} {flaw}, which {name} needs; take another, "
                "or give it weight 0 and it is logged and gates"
            )


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
        raise UserError(_without_density(settings.objective.name, sampling))
    if not subset(stochastic, torch.Generator()).any():
        where = "timestep_window" if wanted.timestep_window else "drop_last"
        raise UserError(
            f"objective.{where}: {getattr(wanted, where)} leaves none of the {len(stochastic)} "
            "steps to train on; widen it"
        )
    return subset


def _without_density(objective: str, sampling: config.Sampler) -> str:
    """What to change where no step of a sampler has a log-probability."""
    for option in ("eta", "noise_level"):
        if (value := sampling.options.get(option)) == 0:
            return (
                f"sampler.{option}: {value} makes every step deterministic, without a "
                f"log-probability; take 0 < {option} <= 1"
            )
    if sampling.num_steps == 1:
        return f"sampler.num_steps: 1 leaves {sampling.name} no stochastic step; take 2"
    return (
        f"sampler.name: {sampling.name} has no step with a log-probability, and {objective} needs "
        "them; take flow_sde or cps, or an objective that needs none (rwr, dpo)"
    )


def prompt_set(settings: Config) -> PromptSet:
    """The prompts of training, to somebody's taste where the model has layers for it."""
    training = plain_prompts(settings)
    return personal(settings, training, training)


def plain_prompts(settings: Config) -> PromptSet:
    """The same to nobody's taste."""
    wanted, repeats = settings.prompts, settings.objective.offline
    if wanted.sets is None:
        return _one_set(wanted, wanted.template, repeats)
    return prompts.mixed(
        [(_one_set(each, each.template or wanted.template), each.weight) for each in wanted.sets]
    )


def _one_set(source: PromptSource, template: str | None, repeats: bool = False) -> PromptSet:
    dataset = (source.dataset, source.split, source.column) if source.dataset else None
    return prompts.load(source.name, source.path, template, repeats, dataset)


def evaluation_sets(settings: Config) -> list[PromptSet]:
    """The training prompts and the held-out ones, each cut to `evaluation.num_prompts`."""
    sets = [prompt_set(settings)]
    wanted, repeats = settings.evaluation.prompts or [], settings.objective.offline
    for source in [wanted] if isinstance(wanted, str) else wanted:
        held_out = prompts.named_or_file(source, settings.prompts.template, repeats)
        if held_out.name in [each.name for each in sets]:
            line = f"{held_out.name} is also the name of another set of prompts; rename one"
            raise UserError(f"evaluation.prompts: {line}")
        sets.append(personal(settings, held_out, plain_prompts(settings)))
    return [each[: settings.evaluation.num_prompts] for each in sets]


def check_fit(settings: Config, model: Policy, loss: Objective) -> None:
    """Raises UserError for an objective or a reward that this model gives nothing to work on."""
    if loss.denoising_errors and not isinstance(model.schedule, samplers.NoiseSchedule):
        raise UserError(
            f"objective.name: {loss.name} works on denoising errors, and {settings.model.name} "
            "has masks in the place of noise; take ddpo, grpo, dpok, prdp, p3o or d3po"
        )
    masks = isinstance(model.schedule, samplers.MaskSchedule)
    if loss.pathwise and masks != (loss.pathwise.temperature is not None):
        works, makes, remedy = ("letters", "continuous noise", "draft")
        if masks:
            works, makes, remedy = ("continuous noise", "masks", "drakes")
        raise UserError(
            f"objective.name: {loss.name} differentiates steps of {works}, and "
            f"{settings.model.name} has {makes}; take {remedy}"
        )
    check_media([*settings.rewards, *settings.eval_rewards], model)


def check_media(wanted: Sequence[config.Reward], model: Policy) -> None:
    """Raises UserError for a reward that scores what the model does not make."""
    for reward in wanted:
        scores = getattr(plugins.load("rewards", reward.name), "medium", "images")
        if scores != model.medium.name:
            raise UserError(
                f"reward {reward.name} scores {scores}, and the model makes {model.medium.name}; "
                "take a reward whose medium that is"
            )


def reward_list(wanted: Sequence[config.Reward], device: torch.device, dtype: str) -> list[Reward]:
    where = device, DTYPES[dtype]
    return [
        rewards.build(r.name, r.weight, r.params, *where, (r.min, r.max), r.cache, r.label)
        for r in wanted
    ]


def all_rewards(settings: Config, model: Policy) -> list[Reward]:
    """What is trained on, then what only judges."""
    both = [*settings.rewards, *settings.eval_rewards]
    check_media(both, model)
    return reward_list(both, model.device, settings.model.dtype)


def mixture(settings: Config, judges: Sequence[Reward], pathwise: bool = False) -> Mixture:
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
        pathwise=pathwise,
    )


def optimizer(
    settings: Config, parameters: list[torch.nn.Parameter]
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """The optimizer and the schedule of its learning rate."""
    own = settings.trainer
    adamw = {"betas": own.betas, "eps": own.adam_eps}
    makers: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "adamw": partial(torch.optim.AdamW, **adamw),
        "adamw8bit": partial(_adamw8bit, **adamw),
        "adafactor": torch.optim.Adafactor,
    }
    made = makers[own.optimizer](parameters, lr=own.lr, weight_decay=own.weight_decay)
    warms_up = own.warmup_steps and own.lr_schedule == "constant"
    schedule = get_scheduler(
        "constant_with_warmup" if warms_up else own.lr_schedule,
        made,
        num_warmup_steps=own.warmup_steps,
        num_training_steps=own.iterations * checks.sizes(settings).updates,
    )
    return made, schedule


def _adamw8bit(parameters: list[torch.nn.Parameter], **options: Any) -> torch.optim.Optimizer:
    from bitsandbytes.optim import AdamW8bit  # pyright: ignore[reportMissingImports]

    return AdamW8bit(parameters, **options)


def trainer(settings: Config) -> Trainer:
    """Everything that `Trainer.iterate` needs."""
    own, offline = settings.trainer, settings.objective.offline
    loss, training_prompts = objective(settings), prompt_set(settings)
    advantage(settings)  # refuses before the model is loaded
    folder = Path(str(settings.prompts.path)).expanduser().parent if offline else None
    if folder is not None:
        pairs.check(plain_prompts(settings), folder)
    model = policy(settings)
    check_fit(settings, model, loss)
    if settings.parallel.shard:
        sharding.shard(model, loss)
    parameters = list(model.parameters().values())
    steps = sampler(settings, model)
    if own.shared_noise and (offline or not steps.steps.stochastic.any()):
        raise UserError(
            "trainer.shared_noise: true would make all images of a prompt the same, since no step "
            "has noise; leave it out, or take another sampler"
        )
    judges = reward_list(settings.rewards, model.device, settings.model.dtype)
    adamw, schedule = optimizer(settings, parameters)
    ema = EMAModel(parameters, decay=settings.ema.decay) if settings.ema.decay else None
    if ema is not None:
        model.snapshots["average"] = dict(zip(model.parameters(), ema.shadow_params, strict=True))
    dense = steps.at(0).steps.stochastic
    columns = Columns(
        subset=subset(settings, dense) if loss.scores_steps else Subset(),
        draws=settings.objective.draws or settings.sampler.num_steps,
        window=settings.objective.noise_window,
        guidance_scale=settings.objective.guidance_scale,
    )
    scorer = Scorer(judges, timeout_s=own.reward_timeout_s, group_size=own.samples_per_prompt)
    return Trainer(
        policy=model,
        sampler=steps,
        prompts=training_prompts,
        scorer=Ranking() if offline else scorer,
        mixture=mixture(settings, judges, loss.pathwise is not None),
        objective=loss,
        optimizer=adamw,
        lr_scheduler=schedule,
        ema=ema,
        sizes=checks.sizes(settings),
        max_grad_norm=own.max_grad_norm,
        seed=settings.seed,
        columns=columns,
        pairs_folder=folder,
        gradient_layers=gradient_layers(settings, loss, model, ranks.state().num_processes),
        shared_noise=own.shared_noise,
        ratio_gate=None if own.ratio_gate == "auto" else own.ratio_gate,
    )
