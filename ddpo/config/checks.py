"""What the types of a configuration cannot say: arithmetic, what does not go together."""

import importlib.util

from ddpo.config.sections import Config, Log
from ddpo.errors import UserError
from ddpo.images import GUARDS
from ddpo.parallel.sizes import Sizes
from ddpo.rewards import short_name

TAKEN = ("mean", "std", "missing", "gated")
"""What metrics call reward/... themselves."""


def check(config: Config, processes: int = 1) -> None:
    """Raises UserError with the place, the value and the nearest valid ones."""
    check_rewards(config)
    check_sizes(sizes(config), processes)
    for key, usual in (("split", "train"), ("column", "prompt")):
        if config.prompts.dataset is None and getattr(config.prompts, key) != usual:
            raise UserError(
                f"prompts.{key}: is of a data set, and prompts.dataset names none; leave it out"
            )
    in_update = config.objective.guidance_scale
    if (
        config.sampler.negative_prompt
        and config.sampler.guidance_scale == 1
        and in_update in (None, 1)
    ):
        raise UserError(
            f"sampler.negative_prompt: {config.sampler.negative_prompt!r} has no effect without "
            "guidance; leave it out, or set sampler.guidance_scale above 1"
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
    project, trackers = config.log.project, config.log.trackers
    if project != Log().project and "wandb" not in trackers:
        more = ", ".join([*trackers, "wandb"])
        where = "which is not among log.trackers"
        raise UserError(
            f"log.project: {project!r} is a project of wandb, {where}; "
            f"add it: --log.trackers '[{more}]'"
        )


def sizes(config: Config) -> Sizes:
    """The sizes of an iteration."""
    trainer = config.trainer
    return Sizes(
        prompts_per_iteration=trainer.prompts_per_iteration,
        samples_per_prompt=trainer.samples_per_prompt,
        minibatches=trainer.minibatches,
        epochs=trainer.epochs,
        micro_batch=trainer.micro_batch,
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


def check_rewards(config: Config) -> None:
    """Raises UserError for rewards and judges that cannot stand side by side, or do nothing."""
    if not config.rewards:
        raise UserError(
            "rewards: needs at least one, as in --rewards '[{name: jpeg_compressibility}]'"
        )
    if not any(reward.weight for reward in config.rewards):
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
