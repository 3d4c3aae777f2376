"""Whether the first update's gradient is collected while images are sampled: the rule of
`trainer.while_sampling`."""

from math import ceil

from ddpo.config import Config
from ddpo.errors import UserError
from ddpo.models import Policy
from ddpo.objectives import Objective
from ddpo.rollout.gradients import Layers, trained_layers

MOST_BYTES = 2**31
"""What the images' gradients may take on one process where `auto` chooses."""


def gradient_layers(
    settings: Config, objective: Objective, policy: Policy, processes: int
) -> Layers | None:
    """The layers whose gradients a rollout collects; None where updates score all pairs again.

    Raises UserError where `true` asks for what cannot be.
    """
    asked = settings.trainer.while_sampling
    if asked is False:
        return None
    layers = trained_layers(policy.modules, policy.parameters())
    obstacle = _obstacle(settings, objective, layers)
    if obstacle and asked is True:
        raise UserError(
            f"trainer.while_sampling: true: {obstacle}; take auto, which scores the images again"
        )
    worth = asked is True or _worth(settings, policy, processes)
    return layers if worth and not obstacle else None


def _obstacle(settings: Config, objective: Objective, layers: Layers | None) -> str:
    """Why the gradient cannot be collected; empty where it can."""
    lora, own = settings.lora, settings.objective.guidance_scale
    if not objective.uniform_over_steps:
        return f"objective {objective.name} does not weigh the steps of an image alike"
    if objective.kl_weight:
        return "objective.kl_weight needs the reference at each step"
    if settings.model.taste and settings.model.taste.tokens > 1:
        return "model.taste.tokens above 1 are projected apart, and not told apart by their image"
    if settings.trains_whole:
        return "lora: null trains the whole network, whose gradients are too large to keep"
    if lora and lora.text_encoder:
        return "lora.text_encoder is called once for all steps, and its gradient is not an image's"
    if layers is None:
        return "lora.target_modules names layers that are not linear"
    if settings.model.gradient_checkpointing:
        return "model.gradient_checkpointing would run each step twice"
    if own is not None and own != settings.sampler.guidance_scale:
        return "objective.guidance_scale is another than the sampler's"
    if settings.parallel.shard:
        return "parallel.shard keeps no step's graph while others sample"
    if settings.model.compile is True:
        return "model.compile leaves no layers to listen to"
    if settings.objective.offline:
        return "objective.offline samples nothing"
    return ""


def _worth(settings: Config, policy: Policy, processes: int) -> bool:
    """One update on all images, the memory of one step's graph, and that of the gradients."""
    own = settings.trainer
    images = ceil(own.prompts_per_iteration / processes) * own.samples_per_prompt
    kept = images * sum(4 * parameter.numel() for parameter in policy.parameters().values())
    return (
        own.minibatches == 1
        and int(settings.sampler.batch_size) <= int(own.micro_batch)
        and kept <= MOST_BYTES
    )
