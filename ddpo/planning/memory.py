"""What memory a run needs, counted on tensors that have sizes and no content."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from math import ceil

import torch
from torch import Tensor

from ddpo.building import build, sharding
from ddpo.models._shared.conditions import CACHE_BYTES
from ddpo.objectives import Replay
from ddpo.planning import imaginary
from ddpo.planning.plan import Plan
from ddpo.prompts import Prompt
from ddpo.rollout.replay import by_parts, unroll

FEW_STEPS = 4
"""Steps of a replay that are gone through; what more of them take follows from these."""

HEAP = 1.4
"""On a CPU the C library's heap holds more than what is alive in it: up to 1.4 times as much,
measured."""


FIRST_CALLS = 150_000_000
"""Bytes of kernels, threads and image libraries that come with the first iteration on a CPU,
measured."""


def footprint(plan: Plan) -> dict[str, int]:
    """Bytes that a process needs besides the interpreter and its libraries.

    The process with the largest share counts.

    weights, training       frozen weights; trained ones with what the optimizer keeps of them, the
                            EMA's and the old policy's
    offloaded               frozen networks that come to a GPU only to compute
    latents, images         what the sampled chunks leave behind; with a KL, the reference's means
                            too
    sampling, decoding, update      the peak within a call of each kind; an update's has the
                                    gradients, and that of a replay its pictures without the reward
    gradients               of each image, where they are collected while it is sampled
    visiting                the largest network that comes to a GPU, with what is there beside it
    loading                 what is there before weights that are trained are cut into pieces
    working, peak           the most of these at one time, and all together; on a CPU nothing visits
    embeddings              of prompts, kept in the main memory, which the peak leaves out
    """
    policy, settings = plan.policy, plan.settings
    whole, chunk = settings.trains_whole, int(settings.sampler.batch_size)
    trained = sum(parameter.nbytes for parameter in policy.parameters().values())
    frozen = _bytes(policy.modules) - trained - getattr(policy, "saved_bytes", 0)
    offloaded = getattr(policy, "offloaded", [])
    share = share_of(plan)
    stored = stored_images(plan, chunk)
    with torch.no_grad():
        embedding = imaginary.kept_bytes(lambda: policy.condition([Prompt("fox")], None))
    with imaginary.tensors, torch.no_grad():
        a_latent, an_image = states(plan, 1).nbytes, policy.decode(states(plan, 1)).nbytes
        an_output = _output(plan, 1, plan.guidance).nbytes
    outputs = an_output * len({"kl", "kl_old"} & set(plan.objective.needs))
    sizes = {
        "weights": frozen + _held(plan, trained) * whole - _bytes(offloaded) - _elsewhere(plan),
        "offloaded": _bytes(offloaded),
        "training": _training(plan, trained),
        "latents": stored * ((plan.steps[0] + 1) * a_latent + plan.steps[0] * outputs),
        "images": stored * an_image,
        "embeddings": min(CACHE_BYTES, _prompts_drawn(plan) * embedding),
        "gradients": plan.collects * share * trained,
        "sampling": imaginary.peak_bytes(lambda: _call(plan, chunk, plan.collects)),
        "decoding": imaginary.peak_bytes(lambda: _decode(plan, chunk)),
        "update": _update(plan),
    }
    return {**sizes, **totals(plan, sizes)}


def _elsewhere(plan: Plan) -> int:
    """Bytes of the denoiser's frozen weights that lie on other processes: `parallel.shard`.

    What belongs to no block stays gathered, and two blocks are there at a time: one computes while
    the next one comes.
    """
    if not plan.settings.parallel.shard:
        return 0
    network = plan.policy.network

    def frozen(module: torch.nn.Module) -> int:
        return sum(p.nbytes for p in module.parameters() if not p.requires_grad)

    parts = [frozen(block) for block in sharding.blocks(network)]
    away = 1 - 1 / plan.processes
    return max(0, round(sum(parts) * away) - 2 * max(parts))


def _in_pieces(plan: Plan) -> bool:
    """The trained weights are: `parallel.shard` without an adapter."""
    return plan.settings.parallel.shard and plan.settings.trains_whole


def _held(plan: Plan, size: int) -> int:
    """Of so many bytes that lie like the trained weights, those on one process."""
    return ceil(size / plan.processes) if _in_pieces(plan) else size


def _gathered(plan: Plan) -> int:
    """Bytes of trained weights, or of their gradients, that are whole while others are in pieces.

    Two blocks, of which one computes while the next one comes, and what belongs to no block.
    """
    if not _in_pieces(plan):
        return 0
    network = plan.policy.network
    sizes = [_bytes_of(block) for block in sharding.blocks(network)]
    return _bytes_of(network) - sum(sizes) + 2 * max(sizes)


def _loading(plan: Plan) -> int:
    """Of weights that are cut into pieces, their copy as the reference and all that is frozen."""
    if not _in_pieces(plan):
        return 0
    policy = plan.policy
    copy = sum(parameter.nbytes for parameter in policy.parameters().values())
    return _bytes(policy.modules) + copy - _bytes(getattr(policy, "offloaded", []))


def _bytes_of(module: torch.nn.Module) -> int:
    return sum(parameter.nbytes for parameter in module.parameters())


def _training(plan: Plan, trained: int) -> int:
    copies = 1 + bool(plan.settings.ema.decay) + (plan.objective.old_policy is not None)
    return _held(plan, trained * copies + _averages(plan)) + _gathered(plan)


def totals(plan: Plan, sizes: Mapping[str, int]) -> dict[str, int]:
    """`working`, `visiting`, `loading` and `peak` of a footprint's other numbers."""
    # while the chunks' latents are joined they are there twice
    sampled = sizes["images"] + max(sizes["sampling"], sizes["decoding"], sizes["latents"])
    kept = sizes["latents"] + sizes["gradients"]
    found = {"working": kept + max(sampled, sizes["update"]), "loading": _loading(plan)}
    offloaded = getattr(plan.policy, "offloaded", [])
    visits = [_bytes([module]) for module in offloaded]
    if offloaded:  # the autoencoder is one of them; text encoders come one after the other
        decoding = sizes["images"] + sizes["decoding"] + visits[-1]
        found["visiting"] = kept + max(decoding, *visits)
    kept_here = sizes["weights"] + sizes["training"]
    at_work = kept_here + max(found["working"], found.get("visiting", 0))
    return {**found, "peak": max(at_work, found["loading"])}


def share_of(plan: Plan) -> int:
    """Images of the process that samples most."""
    sizes = plan.sizes
    return ceil(sizes.prompts_per_iteration / plan.processes) * sizes.samples_per_prompt


def stored_images(plan: Plan, chunk: int) -> int:
    """Images that are kept, with the last chunk's padding."""
    return ceil(share_of(plan) / chunk) * chunk


def _bytes(modules: Iterable[torch.nn.Module]) -> int:
    """Of the parameters and buffers, each once."""
    tensors = (t for module in modules for t in [*module.parameters(), *module.buffers()])
    return sum({id(tensor): tensor.nbytes for tensor in tensors}.values())


SMALL_FOR_8_BITS = 4096
"""Parameters with fewer numbers have their averages in fp32."""


def _averages(plan: Plan) -> int:
    """What the optimizer keeps: two averages like the weights; in 8 bits; or by row and column."""
    parameters, kind = list(plan.policy.parameters().values()), plan.settings.trainer.optimizer
    if kind == "adafactor":
        return sum(
            4 * (p.numel() // p.shape[-1] + p.numel() // p.shape[-2]) if p.dim() > 1 else p.nbytes
            for p in parameters
        )
    if kind == "adamw8bit":
        # a scale in fp32 for each 256 numbers
        large = [p.numel() for p in parameters if p.numel() >= SMALL_FOR_8_BITS]
        small = sum(8 * p.numel() for p in parameters if p.numel() < SMALL_FOR_8_BITS)
        return sum(2 * (count + 4 * ceil(count / 256)) for count in large) + small
    return 2 * sum(p.nbytes for p in parameters)


def states(plan: Plan, rows: int) -> Tensor:
    return torch.zeros(rows, *plan.policy.latent_shape, dtype=plan.policy.latent_dtype)


def _output(plan: Plan, rows: int, scale: float, prompts: Sequence[Prompt] = ()) -> Tensor:
    policy, sampler = plan.policy, plan.settings.sampler
    timesteps = torch.zeros(rows, dtype=torch.long)
    negative = None if scale == 1 else sampler.negative_prompt
    condition = policy.condition(prompts or [Prompt("fox")] * rows, negative)
    return policy.predict(states(plan, rows), timesteps, condition, scale)


@torch.no_grad()
def _decode(plan: Plan, rows: int) -> None:
    plan.policy.decode(states(plan, rows))


def _call(plan: Plan, rows: int, grad: bool) -> None:
    """A call of the denoiser: of a rollout, or with `grad` of an update and its backward pass."""
    pairs = plan.samples * plan.steps[2]
    prompts = [Prompt(str(i // pairs if grad else i // plan.samples)) for i in range(rows)]
    scale = plan.guidance if grad else plan.settings.sampler.guidance_scale
    with torch.set_grad_enabled(grad):
        result = _output(plan, rows, scale, prompts)
        if grad and {"errors_ref", "errors_old"} & set(plan.objective.needs):
            with torch.no_grad():
                _output(plan, rows, scale, prompts)
    if grad:
        result.sum().backward()


def _update(plan: Plan) -> int:
    """The peak within a call of an update with its backward pass; of a replay, its longest.

    Where the only update's gradient is collected while sampling, pairs are scored without one, to
    measure ratios.
    """
    replay = plan.objective.pathwise
    if replay is None:
        if _in_pieces(plan):
            return _update_in_pieces(plan)
        learns = not (plan.collects and plan.sizes.updates == 1)
        return imaginary.peak_bytes(lambda: _call(plan, plan.sizes.micro_batch, learns))
    steps = replay.taken(replay.last_steps[1])
    if steps <= FEW_STEPS:
        return imaginary.peak_bytes(_replay(plan, replay, replay.last_steps[1]))
    # of each step more only its state is kept, since it is computed again in the backward pass
    few = FEW_STEPS - 1, FEW_STEPS
    less, more = (imaginary.peak_bytes(_replay(plan, replay, count)) for count in few)
    return more + (steps - FEW_STEPS) * (more - less)


def _update_in_pieces(plan: Plan) -> int:
    """The same where each gradient becomes a piece as soon as its block is through."""
    parameters = plan.policy.parameters().values()

    def leave(parameter: Tensor) -> None:
        parameter.grad = None

    hooks = [parameter.register_post_accumulate_grad_hook(leave) for parameter in parameters]
    without = imaginary.peak_bytes(lambda: _call(plan, plan.sizes.micro_batch, True))
    for hook in hooks:
        hook.remove()
    pieces = _held(plan, sum(parameter.nbytes for parameter in parameters))
    return without + pieces + _gathered(plan)


def _replay(plan: Plan, replay: Replay, steps: int) -> Callable[[], None]:
    """A replay of so many steps, its pictures, and the backward pass."""
    policy, rows = plan.policy, plan.sizes.micro_batch
    # the steps' tables need contents
    sampler = replace(build.sampler(plan.settings, policy), guidance_scale=plan.guidance)
    sampler = replace(sampler, steps=sampler.steps.relaxed(*replay.relaxed))
    prompts = [Prompt(str(i // (plan.samples * replay.columns))) for i in range(rows)]
    shape = steps, *sampler.steps.noise_shape(policy.latent_shape)
    size, reference = plan.sizes.decode_batch or rows, "kl" in plan.objective.needs

    def update() -> None:
        noise = torch.empty(rows, *shape)
        unrolled = unroll(
            policy,
            sampler,
            prompts,
            states(plan, rows),
            noise,
            reference=reference,
            to_x0=replay.to_x0,
        )
        means = by_parts(lambda x0: policy.decode(x0).flatten(1).mean(1), size, unrolled.x0)
        (means.sum() if unrolled.kl is None else (means + unrolled.kl).sum()).backward()

    return update


def _prompts_drawn(plan: Plan) -> int:
    """Different ones, at most, in the whole run."""
    drawn = plan.settings.trainer.iterations * plan.settings.trainer.prompts_per_iteration
    return min(drawn, plan.prompts[0]) if plan.prompts[0] else drawn


def on_cpu(footprint: Mapping[str, int], interpreter: float) -> float:
    """Peak resident bytes of a process on a CPU, given what it takes before a model is there."""
    parts = ("weights", "offloaded", "training", "working", "embeddings")
    held = sum(footprint[part] for part in parts)
    at_work = FIRST_CALLS + held + (HEAP - 1) * footprint["working"]
    return interpreter + max(at_work, footprint.get("loading", 0))
