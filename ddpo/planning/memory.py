"""What memory a computation needs, counted on tensors that have sizes and no content."""

import gc
import weakref
from collections.abc import Callable, Mapping
from math import ceil
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from ddpo.models._conditions import CACHE_BYTES
from ddpo.planning import memory
from ddpo.planning.plan import Plan
from ddpo.prompts import Prompt

imaginary = FakeTensorMode(allow_non_fake_inputs=True)
"""Within it, operations give tensors without content, those of real tensors too."""


class Alive(TorchDispatchMode):
    """Within it, counts the bytes of the tensors that operations make.

    Those that are still alive are `now`, the most at one time is `peak`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = self.now = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in () if func.is_view else tree_iter(made):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.now += self._sizes[key]
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.now -= self._sizes.pop(key)


def peak_bytes(compute: Callable[[], object]) -> int:
    """The most that the tensors made by `compute` take at one time.

    Tensors made before it are not counted.

    Exact for what torch allocates tensor by tensor; the scratch space inside a kernel is not in it.
    """
    with imaginary, Alive() as alive:
        compute()
    return alive.peak


def kept_bytes(compute: Callable[[], object]) -> int:
    """What of the tensors made by `compute` is still alive when it has returned."""
    with imaginary, Alive() as alive:
        compute()
        gc.collect()
    return alive.now


HEAP = 1.4
"""On a CPU the C library's heap holds more than what is alive in it: up to 1.4 times as much,
measured."""


FIRST_CALLS = 150_000_000
"""Bytes of kernels, threads and image libraries that come with the first iteration on a CPU,
measured."""


def footprint(plan: Plan) -> dict[str, int]:
    """Bytes that a process needs besides the interpreter and its libraries.

    The process with the largest share counts.

    weights, training       frozen weights; trained ones with AdamW's two averages, and the EMA's
    latents, images         what the sampled chunks leave behind; with a KL, the reference's means
                            too
    sampling, decoding, update      the peak within a call of each kind; an update's has the
                                    gradients
    working, peak           the most of the last five at one time, and all together
    embeddings              of prompts, kept in the main memory, which the peak leaves out
    """
    policy, settings = plan.policy, plan.settings
    trainer, whole, chunk = settings.trainer, settings.lora is None, settings.sampler.batch_size
    trained = sum(parameter.nbytes for parameter in policy.parameters().values())
    networks = {id(p): p.nbytes for module in policy.modules for p in module.parameters()}
    frozen = sum(networks.values()) - trained
    share = ceil(trainer.prompts_per_iteration / plan.processes) * trainer.samples_per_prompt
    stored = ceil(share / chunk) * chunk
    kept = plan.steps[0] * (1 + ("kl" in plan.objective.needs)) + 1
    with torch.no_grad():
        embedding = memory.kept_bytes(lambda: policy.condition([Prompt("fox")], None))
    with memory.imaginary, torch.no_grad():
        a_latent, an_image = _noise(plan, 1).nbytes, policy.decode(_noise(plan, 1)).nbytes
    sizes = {
        "weights": frozen + trained * whole,
        "training": trained * (3 + bool(settings.ema.decay)),
        "latents": stored * kept * a_latent,
        "images": stored * an_image,
        "embeddings": min(CACHE_BYTES, _prompts_drawn(plan) * embedding),
        "sampling": memory.peak_bytes(lambda: _call(plan, chunk, False)),
        "decoding": memory.peak_bytes(lambda: torch.no_grad()(policy.decode)(_noise(plan, chunk))),
        "update": memory.peak_bytes(lambda: _call(plan, trainer.micro_batch, True)),
    }
    # while the chunks' latents are joined they are there twice
    sampled = sizes["images"] + max(sizes["sampling"], sizes["decoding"], sizes["latents"])
    sizes["working"] = sizes["latents"] + max(sampled, sizes["update"])
    return {**sizes, "peak": sizes["weights"] + sizes["training"] + sizes["working"]}


def _noise(plan: Plan, rows: int) -> Tensor:
    return torch.empty(rows, *plan.policy.latent_shape)


def _call(plan: Plan, rows: int, grad: bool) -> None:
    """A call of the denoiser: of a rollout, or with `grad` of an update and its backward pass."""
    policy, sampler = plan.policy, plan.settings.sampler
    pairs = plan.samples * plan.steps[2]
    prompts = [Prompt(str(i // pairs if grad else i // plan.samples)) for i in range(rows)]
    timesteps = torch.zeros(rows, dtype=torch.long)
    scale = plan.guidance if grad else sampler.guidance_scale

    def output() -> Tensor:
        condition = policy.condition(prompts, None if scale == 1 else sampler.negative_prompt)
        return policy.predict(_noise(plan, rows), timesteps, condition, scale)

    with torch.set_grad_enabled(grad):
        result = output()
        if grad and "errors_ref" in plan.objective.needs:
            with torch.no_grad():
                output()
    if grad:
        result.sum().backward()


def _prompts_drawn(plan: Plan) -> int:
    """Different ones, at most, in the whole run."""
    drawn = plan.settings.trainer.iterations * plan.settings.trainer.prompts_per_iteration
    return min(drawn, plan.prompts[0]) if plan.prompts[0] else drawn


def on_cpu(footprint: Mapping[str, int], interpreter: float) -> float:
    """Peak resident bytes of a process on a CPU, given what it takes before a model is there."""
    held = footprint["peak"] + footprint["embeddings"]
    return interpreter + FIRST_CALLS + held + (HEAP - 1) * footprint["working"]
