"""What the types of a configuration cannot say: arithmetic, what does not go together."""

import importlib.util

from ddpo.config.sections import Config, Log, Sampler, Trainer
from ddpo.errors import UserError
from ddpo.media import GUARDS
from ddpo.parallel.sizes import Sizes
from ddpo.rewards import short_name

TAKEN = ("mean", "std", "missing", "gated", "kl")
"""What metrics call reward/... themselves."""


def check(config: Config, processes: int = 1) -> None:
    """Raises UserError with the place, the value and the nearest valid ones."""
    check_rewards(config)
    check_sizes(sizes(config), processes)
    _check_prompts(config)
    guided = config.objective.guidance_scale not in (None, 1)
    check_negative_prompt("sampler", config.sampler, guided)
    check_negative_prompt("evaluation.sampler", config.evaluation.sampler)
    if config.sampler.sde_window is not None:
        for name in ("timestep_window", "drop_last"):
            if value := getattr(config.objective, name):
                raise UserError(
                    f"objective.{name}: {value} leaves out steps of sampler.sde_window, the only "
                    "ones with noise; make that smaller instead"
                )
    low, high = config.objective.noise_window
    if low >= high:
        raise UserError(
            f"objective.noise_window: {[low, high]} is no window; let the first be below the second"
        )
    path, samples = config.prompts.path, config.trainer.samples_per_prompt
    if config.objective.offline and (samples != 2 or path is None):
        raise UserError(
            "objective.offline: needs prompts.path, a file with the columns chosen and rejected, "
            f"and trainer.samples_per_prompt 2, these two; got {path} and {samples}"
        )
    gate = next(
        (reward.name for reward in config.rewards if (reward.min, reward.max) != (None, None)), None
    )
    if config.objective.offline and (gate or config.advantage.per_reward):
        wrong = f"the gate of {gate}" if gate else "advantage.per_reward"
        raise UserError(
            f"objective.offline: rewards only judge, and {wrong} has nothing to work on; drop it"
        )
    for i, tracker in enumerate(config.log.trackers):
        if tracker != "jsonl" and importlib.util.find_spec(tracker) is None:
            raise UserError(
                f"log.trackers.{i}: {tracker} is not installed; pip install 'ddpo[{tracker}]'"
            )
    _check_optimizer(config.trainer)
    _check_weights(config)
    if config.parallel.shard:
        check_shards(config, processes)
    project, trackers = config.log.project, config.log.trackers
    if project != Log().project and "wandb" not in trackers:
        more = ", ".join([*trackers, "wandb"])
        where = "which is not among log.trackers"
        raise UserError(
            f"log.project: {project!r} is a project of wandb, {where}; "
            f"add it: --log.trackers '[{more}]'"
        )


def _check_prompts(config: Config) -> None:
    """Raises UserError for options of a data set without one, and for sets that do not mix."""
    sets = config.prompts.sets or []
    for place, source in {
        "prompts": config.prompts,
        **{f"prompts.sets.{i}": each for i, each in enumerate(sets)},
    }.items():
        for key, usual in (("split", "train"), ("column", "prompt")):
            if source.dataset is None and getattr(source, key) != usual:
                raise UserError(
                    f"{place}.{key}: is of a data set, and {place}.dataset names none; leave it out"
                )
    bare = [each.model_dump(exclude={"weight"}) for each in sets]
    for i, each in enumerate(bare):
        if each in bare[:i]:
            raise UserError(
                f"prompts.sets.{i}: is prompts.sets.{bare.index(each)} again; "
                "give it once, with both weights added"
            )
    taste = config.model.taste
    if sets and taste is not None and taste.name != "weights":
        raise UserError(
            f"prompts.sets: users of {taste.name} are those of one file; give prompts.path"
        )


def check_shards(config: Config, processes: int) -> None:
    """Raises UserError for what a sharded denoiser cannot do."""
    why = ""
    if processes == 1:
        why = "one process has nobody to share with; start several, as configs/accelerate shows"
    elif config.trains_whole and config.trainer.optimizer != "adamw":
        own = config.trainer.optimizer
        why = f"trainer.optimizer {own} needs whole weights, and lora: null cuts them; take adamw"
    elif config.model.compile is True:
        why = "model.compile would compile the messages, too; leave one of them out"
    elif config.model.options.get("quantize"):
        why = "model.quantize holds weights in 4 bits, which cannot be cut; leave one of them out"
    if why:
        raise UserError(f"parallel.shard: true: {why}")


def _check_optimizer(trainer: Trainer) -> None:
    """Raises UserError for an optimizer that is not installed, or options that it has not."""
    if trainer.optimizer == "adamw8bit" and importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            "trainer.optimizer: adamw8bit needs bitsandbytes, which is not installed; "
            "pip install 'ddpo[bitsandbytes]'"
        )
    usual = Trainer()
    for name in ("betas", "adam_eps") if trainer.optimizer == "adafactor" else ():
        if getattr(trainer, name) != getattr(usual, name):
            raise UserError(f"trainer.{name}: is AdamW's, and adafactor has none; leave it out")


def _check_weights(config: Config) -> None:
    """Raises UserError where samples of different mixtures of rewards would be compared."""
    if config.model.taste is None or config.model.taste.name != "weights":
        return
    if config.objective.offline:
        raise UserError(
            "model.taste.name: weights mix rewards, and with objective.offline these only judge; "
            "take vlm or table"
        )
    name, samples = config.advantage.name, config.trainer.samples_per_prompt
    few = config.advantage.options.get("min_count", 0) > samples
    if name == "batch" or (name == "per_prompt" and few):
        remedy = "take group"
        if name == "per_prompt":
            remedy += f", or advantage.min_count {samples}, the samples per prompt"
        raise UserError(
            f"advantage.name: {name} compares images of different mixtures of rewards, "
            f"which model.taste draws; {remedy}"
        )


def check_negative_prompt(place: str, sampler: Sampler | None, guided: bool = False) -> None:
    """Raises UserError for one without effect; `guided` says that it has one elsewhere."""
    if sampler and sampler.negative_prompt and sampler.guidance_scale == 1 and not guided:
        raise UserError(
            f"{place}.negative_prompt: {sampler.negative_prompt!r} has no effect without "
            f"guidance; leave it out, or set {place}.guidance_scale above 1"
        )


def sizes(config: Config) -> Sizes:
    """The sizes of an iteration; `auto` stands for 1 until it is settled."""
    trainer = config.trainer
    return Sizes(
        prompts_per_iteration=trainer.prompts_per_iteration,
        samples_per_prompt=trainer.samples_per_prompt,
        minibatches=trainer.minibatches,
        epochs=trainer.epochs,
        micro_batch=1 if trainer.micro_batch == "auto" else trainer.micro_batch,
        decode_batch=trainer.decode_batch,
    )


def check_sizes(sizes: Sizes, processes: int) -> None:
    """Raises UserError where groups would be split, or a process would have none."""
    prompts, parts = sizes.prompts_per_iteration, sizes.minibatches
    if better := sizes.better_minibatches():
        raise UserError(
            f"trainer.minibatches: {parts} does not divide prompts_per_iteration {prompts}, "
            f"and the samples of a prompt stay together; take {' or '.join(map(str, better))}, "
            f"or prompts_per_iteration {prompts + -prompts % parts}"
        )
    if prompts < processes:
        text = f"{prompts} leaves some of the {processes} processes without a prompt"
        raise UserError(f"trainer.prompts_per_iteration: {text}; take {processes} or more")


def check_rewards(config: Config, trains: bool = True) -> None:
    """Raises UserError for rewards and judges that cannot stand side by side, or do nothing.

    What only evaluates (`trains` is False) needs one of either.
    """
    if not trains and not [*config.rewards, *config.eval_rewards]:
        raise UserError(
            "eval_rewards: needs at least one judge, as in --eval_rewards clip_score,sharpness"
        )
    if trains and not config.rewards:
        raise UserError(
            "rewards: needs at least one, as in --rewards '[{name: jpeg_compressibility}]'"
        )
    if trains and not any(reward.weight for reward in config.rewards):
        raise UserError("rewards: all weights are 0; give one another weight")
    for i, reward in enumerate(config.rewards):
        if reward.min is not None and reward.max is not None and reward.min > reward.max:
            raise UserError(
                f"rewards.{i}.min: {reward.min} is above max {reward.max}, so no image could pass"
            )
    for i, reward in enumerate(config.eval_rewards):
        if reward.min is not None or reward.max is not None:
            gate = "min" if reward.max is None else "max"
            raise UserError(
                f"eval_rewards.{i}.{gate}: a judge gates nothing; move {reward.name} to rewards"
            )
        if reward.weight != 1:
            raise UserError(
                f"eval_rewards.{i}.weight: {reward.weight:g}, but judges are not summed; "
                "leave it out"
            )
    seen: set[str] = set()
    sections = {"rewards": config.rewards, "eval_rewards": config.eval_rewards}
    for place, reward in [
        (f"{key}.{i}", r) for key, each in sections.items() for i, r in enumerate(each)
    ]:
        name, given = short_name(reward.name, reward.label), "label" if reward.label else "name"
        if name in TAKEN or reward.label in GUARDS:
            raise UserError(
                f"{place}.{given}: {name} is a name that metrics need; give another label"
            )
        if name in seen:
            raise UserError(
                f"{place}.{given}: {name} is there twice; give it once, or one of them a label"
            )
        seen.add(name)
