"""A known architecture with random weights, and ddpo's own objects around it, for
benchmarks/gpu.py."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from ddpo import config, plugins
from ddpo.building import build
from ddpo.config import Config
from ddpo.config.flags import change
from ddpo.models import Policy
from ddpo.models._tiny import tiny
from ddpo.objectives import Batch
from ddpo.parallel import ranks
from ddpo.parallel.seeds import Purpose
from ddpo.prompts import Prompt
from ddpo.rollout.sample import Sampler, sample
from ddpo.rollout.trajectory import Trajectory, join
from ddpo.training.measures import Measured
from ddpo.training.terms.log_probs import LogProbs
from ddpo.training.update import Pass

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "sd15": {
        "name": "stable_diffusion",
        "pretrained": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    },
    "sdxl": {"name": "sdxl", "pretrained": "stabilityai/stable-diffusion-xl-base-1.0"},
    "sd35": {"name": "sd3", "pretrained": "stabilityai/stable-diffusion-3.5-medium"},
    "tiny": {"name": "stable_diffusion", "pretrained": "tiny"},
}
"""The section `model` of each: any whose architecture `ddpo plan` knows, and a toy for CPUs."""

FLOWS = {"sd35": {"name": "flow_sde"}}
"""The sampler of those that are rectified flows; all others take DDIM with eta 1."""

ARITHMETIC = {"bf16": "bf16", "fp16": "fp16", "fp32": "fp32", "tf32": "fp32"}
"""model.dtype of each; tf32 lets matrix products use it too, which torch allows to convolutions
alone."""


def use(arithmetic: str) -> None:
    """Set torch's switches, for what follows."""
    torch.backends.cuda.matmul.allow_tf32 = arithmetic == "tf32"


def settings(
    architecture: str,
    arithmetic: str,
    changes: Mapping[str, str],
    images: int = 8,
    steps: int = 50,
    micro_batch: int = 8,
    batch_size: int = 8,
) -> Config:
    """DDPO with LoRA of rank 16, guidance 5 and noise in every step; `changes` are dotted names, as
    flags are."""
    values = {
        "model": {**ARCHITECTURES[architecture], "dtype": ARITHMETIC[arithmetic]},
        "lora": {"rank": 16},
        "sampler": {
            **FLOWS.get(architecture, {"name": "ddim", "eta": 1.0}),
            "num_steps": steps,
            "guidance_scale": 5.0,
            "batch_size": batch_size,
        },
        "rewards": [{"name": "jpeg_compressibility"}],
        "objective": {"name": "ddpo"},
        "advantage": {"name": "batch"},
        "trainer": {
            "iterations": 1,
            "prompts_per_iteration": images,
            "samples_per_prompt": 1,
            "minibatches": 1,
            "micro_batch": micro_batch,
        },
    }
    change(values, dict(changes))
    return config.load(values)


@torch.no_grad()
def fill(module: nn.Module) -> None:
    """Random weights under which activations keep their size, in half precision too."""
    for name, parameter in module.named_parameters():
        if parameter.dim() > 1:
            parameter.normal_(std=parameter[0].numel() ** -0.5)
        else:
            parameter.fill_(float(name.endswith("weight")))  # of norms; the others are biases
    for buffer in module.buffers():
        buffer.zero_()


def pipeline(wanted: Config, device: torch.device) -> Any:
    """The architecture's pipeline with random weights, made where they are used."""
    if wanted.model.pretrained == "tiny":
        return tiny()
    adapter: Any = plugins.load("models", wanted.model.name)
    found = adapter.outline(wanted.model.pretrained, wanted.model.dtype, wanted.lora is None)
    assert found is not None, (
        f"{wanted.model.pretrained}: ddpo plan does not know this architecture"
    )
    torch.manual_seed(0)
    for part in found.components.values():
        if isinstance(part, nn.Module):
            fill(part.to_empty(device=device))
    return found


@dataclass
class Case:
    """A policy with random weights, and how ddpo samples and updates it."""

    architecture: str
    arithmetic: str
    changes: Mapping[str, str]

    def settings(self, **sizes: int) -> Config:
        return settings(self.architecture, self.arithmetic, self.changes, **sizes)

    @cached_property
    def policy(self) -> Policy:
        use(self.arithmetic)
        device = ranks.state().device
        return build.policy(self.settings(), pipeline(self.settings(), device), device)

    @property
    def device(self) -> torch.device:
        return self.policy.device

    def prompts(self, images: int) -> list[Prompt]:
        return [Prompt(str(i % 10)) for i in range(images)]  # the outline's tokenizer knows digits

    def sampler(self, **sizes: int) -> Sampler:
        return build.sampler(self.settings(**sizes), self.policy)

    @torch.no_grad()
    def rollout(self, sampler: Sampler, images: int) -> Trajectory:
        """As the trainer does it, without the rewards."""
        keys = [(Purpose.NOISE, 0, 0, number) for number in range(images)]
        return join(list(sample(self.policy, sampler, self.prompts(images), keys)))

    def work(
        self, sampler: Sampler, found: Trajectory, micro_batch: int, columns: Sequence[int]
    ) -> Pass:
        """The update of those steps, before anything has moved."""
        images, objective = len(found.samples), build.objective(self.settings())
        chosen = torch.zeros(len(sampler.steps), dtype=torch.bool, device=self.device)
        chosen[list(columns)] = True
        advantage = (
            torch.randn(images, generator=torch.Generator().manual_seed(0)).double().to(self.device)
        )
        batch = Batch(
            advantage=advantage,
            reward=advantage,
            group=torch.arange(images, device=self.device),
            present=torch.ones(images, dtype=torch.bool, device=self.device),
            stochastic=chosen & sampler.steps.stochastic,
            matrices={"logp_old": found.logp_old},
        )
        terms = LogProbs(self.policy, sampler, found)
        measured = Measured(objective.ratio_bound)
        return Pass(terms, batch, objective, micro_batch, measured, moved=False)

    def forget_gradients(self) -> None:
        # some parts need none, and it is made when it is first asked for
        if "policy" in vars(self):
            for parameter in self.policy.parameters().values():
                parameter.grad = None
