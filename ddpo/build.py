"""From a configuration to the objects it names, and a finished run's models to sample from."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import torch
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from peft import LoraConfig
from PIL import Image

from ddpo import checkpoint, config, objectives, plugins, prompts, ranks, rewards
from ddpo.advantages import ADVANTAGES
from ddpo.config import Config
from ddpo.errors import UserError
from ddpo.images import to_pil
from ddpo.models import Policy
from ddpo.models.stable_diffusion import DTYPES
from ddpo.prompts import PromptSet
from ddpo.rewards import Reward
from ddpo.rollout import Purpose, Sampler, sample
from ddpo.scoring import Scorer
from ddpo.trainer import Trainer
from ddpo.transitions import SAMPLERS

log = logging.getLogger("ddpo")


def policy(settings: Config) -> Policy:
    """The model with a fresh adapter (the same on every rank: its noise comes from the seed)."""
    torch.manual_seed(settings.seed)
    model, lora = settings.model, settings.lora
    adapter = lora and LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha or lora.rank,  # pyright: ignore[reportArgumentType]
        init_lora_weights="gaussian", target_modules=list(lora.target_modules),
    )  # fmt: skip
    adapt = cast(Callable[..., Policy], plugins.load("models", model.name))
    return adapt(
        model.pretrained, device=ranks.state().device, dtype=model.dtype, loras=model.loras, lora=adapter,
        train_text_encoder=bool(lora and lora.text_encoder),
        gradient_checkpointing=model.gradient_checkpointing, **model.options,
    )  # fmt: skip


def sampler(settings: Config, model: Policy) -> Sampler:
    """Raises UserError for a sampler without a stochastic step: it has no log-probabilities to train on."""
    wanted = settings.sampler
    schedule = model.schedule(wanted.num_steps, wanted.name)
    try:
        steps = SAMPLERS[wanted.name](schedule, **wanted.options)
    except ValueError as error:
        raise UserError(str(error)) from error
    if not steps.stochastic.any():
        if wanted.name != "ddim":
            few = wanted.num_steps
            raise UserError(f"sampler.num_steps: {few} leaves {wanted.name} no stochastic step; take 2")
        eta = wanted.options.get("eta")
        raise UserError(
            f"sampler.eta: {eta} makes every step deterministic, without a log-probability; take 0 < eta <= 1"
        )
    return Sampler(steps.to(model.device), wanted.guidance_scale, wanted.batch_size)


def prompt_set(settings: Config) -> PromptSet:
    return prompts.load(settings.prompts.name, settings.prompts.path, settings.prompts.template)


def evaluation_sets(settings: Config) -> list[PromptSet]:
    """The training prompts and the held-out ones, each cut to `evaluation.num_prompts`."""
    sets = [prompt_set(settings)]
    if settings.evaluation.prompts:
        held_out = prompts.load(settings.evaluation.prompts, None, settings.prompts.template)
        if held_out.name == sets[0].name:
            raise UserError(
                f"evaluation.prompts: {held_out.name} is also the name of the training prompts; rename one"
            )
        sets.append(held_out)
    return [each[: settings.evaluation.num_prompts] for each in sets]


def reward_list(wanted: Sequence[config.Reward], device: torch.device, dtype: str) -> list[Reward]:
    return [rewards.build(each.name, each.weight, each.params, device, DTYPES[dtype]) for each in wanted]


def all_rewards(settings: Config, model: Policy) -> list[Reward]:
    """What is trained on, then what only judges."""
    both = [*settings.rewards, *settings.eval_rewards]
    return reward_list(both, model.device, settings.model.dtype)


def trainer(settings: Config) -> Trainer:
    """Everything that `Trainer.iterate` needs."""
    world, wanted = ranks.state().num_processes, settings.trainer
    if wanted.prompts_per_iteration < world:
        raise UserError(
            f"trainer.prompts_per_iteration: {wanted.prompts_per_iteration} leaves some of the {world} "
            f"processes without a prompt; take {world} or more"
        )
    model = policy(settings)
    parameters = list(model.parameters().values())
    objective = objectives.build(settings.objective.name, **settings.objective.options)
    updates = wanted.minibatches * wanted.epochs
    if objective.on_policy and updates > 1 and ranks.state().is_main_process:
        log.warning(
            "%s is on-policy: of the %d updates a rollout, only the first is unbiased",
            objective.name,
            updates,
        )
    optimizer = torch.optim.AdamW(
        parameters,
        wanted.lr,
        betas=(wanted.betas[0], wanted.betas[1]),
        eps=wanted.adam_eps,
        weight_decay=wanted.weight_decay,
    )
    warms_up = wanted.warmup_steps and wanted.lr_schedule == "constant"
    schedule = get_scheduler(
        "constant_with_warmup" if warms_up else wanted.lr_schedule,
        optimizer,
        num_warmup_steps=wanted.warmup_steps,
        num_training_steps=wanted.iterations * updates,
    )
    return Trainer(
        policy=model, sampler=sampler(settings, model), prompts=prompt_set(settings),
        scorer=Scorer(reward_list(settings.rewards, model.device, settings.model.dtype)), objective=objective,
        advantage=ADVANTAGES[settings.advantage.name](**settings.advantage.options),
        optimizer=optimizer, lr_scheduler=schedule,
        ema=EMAModel(parameters, decay=settings.ema.decay) if settings.ema.decay else None,
        prompts_per_iteration=wanted.prompts_per_iteration, samples_per_prompt=wanted.samples_per_prompt,
        minibatches=wanted.minibatches, epochs=wanted.epochs, micro_batch=wanted.micro_batch,
        max_grad_norm=wanted.max_grad_norm, advantage_clip=settings.advantage.clip, seed=settings.seed,
    )  # fmt: skip


class Run:
    """A run's base and tuned model, to sample from: `ddpo.load("runs/demo").sample(["a fox"], seeds=[0])`."""

    def __init__(self, run_dir: str | Path) -> None:
        self.folder = Path(run_dir)
        if not (self.folder / "config.yaml").is_file():
            raise UserError(f"{run_dir} is not the folder of a run: it has no config.yaml")
        self.config = config.load(self.folder / "config.yaml")
        self.policy = policy(self.config)
        self.sampler = sampler(self.config, self.policy)
        self.checkpoints = {path.name: path for path in checkpoint.all_of(self.folder)}

    def use(self, column: str = "tuned") -> None:
        """Take the weights of a checkpoint, "000020" or "tuned" (the newest); averaged if that was kept."""
        if not self.checkpoints:
            raise UserError(
                f"{self.folder} has no checkpoint yet; let it train, or go on with --resume {self.folder}"
            )
        name = max(self.checkpoints) if column == "tuned" else column
        if name not in self.checkpoints:
            raise UserError(
                f"{self.folder} has no checkpoint {column}; there are: {', '.join(self.checkpoints)}"
            )
        tensors, _ = checkpoint.load(self.checkpoints[name])
        checkpoint.restore_parameters(self.policy.parameters(), tensors.get("ema", tensors["parameters"]))

    def sample(self, texts: Sequence[str], seeds: Sequence[int], column: str = "tuned") -> list[Image.Image]:
        """One picture for each prompt and seed, by "base", "tuned" or a checkpoint; as in the evaluation."""
        keys = [(Purpose.EVALUATION, seed) for seed in seeds]
        if column != "base":
            self.use(column)
            parts = list(sample(self.policy, self.sampler, texts, keys))
        else:
            with self.policy.reference():
                parts = list(sample(self.policy, self.sampler, texts, keys))
        return [image for part in parts for image in to_pil(part.images)]
