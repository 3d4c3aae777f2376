"""For tests: a tiny policy with its sampler, a trainer around it, its pipeline as a folder, a small
run."""

import atexit
import functools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig
from torch import Tensor
from torch.nn import Module
from torch.utils._pytree import tree_map_only
from transformers.utils import logging as transformers_logging

from ddpo import advantages, config, objectives, samplers
from ddpo.__main__ import main
from ddpo.config import Config
from ddpo.config import Reward as RewardConfig
from ddpo.models._tiny import tiny
from ddpo.models.stable_diffusion import StableDiffusion
from ddpo.objectives import Batch, Objective
from ddpo.parallel.sizes import Sizes
from ddpo.prompts import Prompt, PromptSet
from ddpo.records import metrics
from ddpo.rewards import Reward
from ddpo.rollout.sample import Sampler, sample, stored_steps
from ddpo.rollout.trajectory import Trajectory, join
from ddpo.scoring.scorer import Scorer
from ddpo.training.credit import Mixture
from ddpo.training.measures import Measured
from ddpo.training.old_policy import OldPolicy
from ddpo.training.selection import Columns
from ddpo.training.terms import Terms
from ddpo.training.terms.denoising_errors import DenoisingErrors
from ddpo.training.terms.log_probs import LogProbs
from ddpo.training.trainer import Trainer
from ddpo.training.update import Pass

TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
WORDS = ["a fox", "a cat", "two dogs", "an owl", "a very small red bird", "x", "moss", "a bee"]


def adapter(**changes: Any) -> LoraConfig:
    options = {"r": 4, "lora_alpha": 4, "init_lora_weights": "gaussian", "target_modules": TARGETS}
    return LoraConfig(**{**options, **changes})


def policy(
    *, moved: float = 0.0, lora: LoraConfig | str | None = "default", **options: Any
) -> StableDiffusion:
    """The tiny model with its adapter; `moved` draws every trained weight again or shifts it, by so
    much."""
    pipeline = options.pop("pipeline", None) or tiny(options.pop("prediction_type", "epsilon"))
    torch.manual_seed(1)
    built = StableDiffusion(pipeline, lora=adapter() if isinstance(lora, str) else lora, **options)
    if moved:
        move(built, moved)
    return built


def as_prompts(texts: Iterable[str]) -> list[Prompt]:
    return [Prompt(text) for text in texts]


@contextmanager
def in_double(network: Module) -> Iterator[None]:
    """Within it the network computes in double precision, whatever it is given."""

    def double(module: Module, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
        return tree_map_only(Tensor, _double, (given, named))

    cast = network.double().register_forward_pre_hook(double, with_kwargs=True)
    yield
    cast.remove()
    network.float()


def _double(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def move(policy: StableDiffusion, size: float) -> None:
    noise = torch.Generator().manual_seed(7)
    for parameter in policy.parameters().values():
        parameter.data += size * torch.randn(parameter.shape, generator=noise)


def sampler(
    policy: StableDiffusion, *, steps: int = 4, eta: float = 1.0, batch_size: int = 4
) -> Sampler:
    return Sampler(samplers.build("ddim", policy.schedule, steps, eta=eta), 3.0, batch_size)


def rolled(
    policy: StableDiffusion, sampler: Sampler, count: int, *, reference: bool = False, seed: int = 0
) -> tuple[Trajectory, Tensor]:
    """`count` trajectories as one, and their images; with the reference's log-probabilities and
    outputs."""
    keys = [(seed, i) for i in range(count)]
    prompts = as_prompts(WORDS[i // 2 % len(WORDS)] for i in range(count))
    wanted = ("logp_ref", "output_ref") if reference else ()
    with torch.no_grad():
        parts = list(sample(policy, sampler, prompts, keys, wanted))
    return join(parts), torch.cat([part.images for part in parts])


def work_on(
    policy: StableDiffusion,
    trajectory: Trajectory,
    sampler: Sampler,
    objective: Objective,
    micro_batch: int,
) -> Pass:
    """A pass over these trajectories, in groups of two, with rewards and advantages that differ."""
    count = len(trajectory.samples)
    reward = torch.linspace(-1, 2, count, dtype=torch.float64).roll(3) ** 3
    group = torch.arange(count) // 2
    terms: Terms = LogProbs(policy, sampler, trajectory)
    stochastic = sampler.steps.stochastic
    recorded = {"logp_old": trajectory.logp_old, "logp_ref": trajectory.logp_ref}
    matrices = {name: matrix for name, matrix in recorded.items() if matrix is not None}
    if objective.old_policy is not None and "old" not in policy.snapshots:
        OldPolicy(policy, objective)
    if objective.denoising_errors:
        stochastic, matrices = torch.ones(3, dtype=torch.bool), {}
        keys = [(9, sample // 2) for sample in trajectory.samples]
        terms = DenoisingErrors(
            policy, sampler, trajectory, keys, 3, objective.needs, objective.mixture
        )
    batch = Batch(
        advantage=reward - reward.mean(),
        reward=reward,
        group=group,
        present=torch.ones(count, dtype=torch.bool),
        stochastic=stochastic,
        matrices=matrices,
        all_reward=reward,
        all_group=group,
    )
    return Pass(terms, batch, objective, micro_batch, Measured(None))


def step_log_probs(
    policy: StableDiffusion, sampler: Sampler, trajectory: Trajectory, rows: Tensor, columns: Tensor
) -> Tensor:
    """log p(x_{t-1} | x_t, c) of chosen (sample, step) pairs, with gradients if they are
    enabled."""
    step = stored_steps(policy, sampler, trajectory, rows, columns)
    return step.log_prob(trajectory.latents[rows, columns + 1])


def gradient(work: Pass, samples: Sequence[int]) -> Tensor:
    """Of one optimizer step over `samples`, all trained weights in one vector."""
    parameters = work.terms.policy.parameters().values()
    for parameter in parameters:
        parameter.grad = None
    work.backward(samples)
    return flat_gradient(work.terms.policy)


def flat_gradient(policy: Any) -> Tensor:
    parameters = policy.parameters().values()
    return torch.cat(
        [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters]
    )


def difference(one: Tensor, other: Tensor) -> float:
    """Of two vectors, relative to the second."""
    return ((one - other).norm() / other.norm()).item()


def redness(
    images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]
) -> Tensor:
    return images[:, 0].mean((1, 2)) - images[:, 1:].mean((1, 2, 3))


def make_trainer(
    policy: StableDiffusion,
    objective: Objective | str = "ddpo",
    reward: Callable[..., Tensor] = redness,
    lr: float = 1e-3,
    **changes: Any,
) -> Trainer:
    """4 prompts of 4 samples, 4 steps, one update per iteration.

    `changes` are fields of the trainer, and of its sizes, mixture and columns.
    """
    parameters = list(policy.parameters().values())
    optimizer = torch.optim.AdamW(parameters, lr)
    rewards = changes.pop("rewards", [Reward("redness", 1.0, reward)])
    parts: dict[str, Any] = {
        "sizes": partial(Sizes, prompts_per_iteration=4, samples_per_prompt=4),
        "mixture": partial(Mixture, rewards=rewards, make=partial(advantages.build, "group")),
        "columns": Columns,
    }
    for name, make in parts.items():
        own = {f.name for f in fields(getattr(make, "func", make))} & changes.keys()
        parts[name] = make(**{key: changes.pop(key) for key in own})
    values: dict[str, Any] = {
        "policy": policy,
        "sampler": sampler(policy, batch_size=16),
        "prompts": PromptSet("words", tuple(Prompt(word, {}) for word in WORDS)),
        "scorer": Scorer(rewards),
        "objective": objectives.build(objective) if isinstance(objective, str) else objective,
        "optimizer": optimizer,
        "lr_scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0),
        "ema": None,
        "max_grad_norm": 1.0,
        "seed": 0,
        **parts,
    }
    return Trainer(**{**values, **changes})


@functools.cache
def pipeline_folder() -> str:
    """The tiny pipeline as diffusers saves it; removed when the process ends."""
    folder = tempfile.mkdtemp(prefix="ddpo_tiny_")
    atexit.register(shutil.rmtree, folder, True)
    transformers_logging.disable_progress_bar()  # some tests count the lines on stderr
    tiny().save_pretrained(folder)
    return folder


def plain_pipeline() -> StableDiffusionPipeline:
    """The same as any user of diffusers would load it."""
    pipeline = StableDiffusionPipeline.from_pretrained(pipeline_folder(), safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def reward_file(folder: Path) -> str:
    """The spec of a reward in a file of one's own."""
    file = folder / "redness.py"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(
        "def redness(images, prompts, metadata):\n"
        "    return images[:, 0].mean((1, 2)) - images[:, 1:].mean((1, 2, 3))\n"
        "redness.differentiable = True\n"
    )
    return f"{file}:redness"


def smoke(run_dir: Path, *flags: str) -> list[str]:
    """Arguments of `ddpo train` for the smoke configuration on the tiny model: a second an
    iteration."""
    return [
        "--config",
        "smoke",
        "--model.pretrained",
        pipeline_folder(),
        "--run_dir",
        str(run_dir),
        "--lora.rank",
        "4",
        "--sampler.num_steps",
        "3",
        "--trainer.samples_per_prompt",
        "2",
        "--log.images",
        "0",
        "--rewards",
        "[{name: jpeg_compressibility}]",
        "--eval_rewards",
        "[]",
        *flags,
    ]


def settings(run_dir: Path, **sections: Any) -> Config:
    """The same size of run, from Python."""
    built = Config(run_dir=str(run_dir), rewards=[RewardConfig(name="jpeg_compressibility")])
    built.model.pretrained, built.model.dtype = pipeline_folder(), "fp32"
    assert built.lora is not None
    built.lora.rank = 4
    built.sampler.num_steps, built.sampler.guidance_scale = 3, 3.0
    built.trainer.prompts_per_iteration, built.trainer.samples_per_prompt = 4, 2
    built.trainer.iterations, built.trainer.lr, built.log.images = 4, 1e-3, 0
    for path, value in sections.items():
        section, _, key = path.partition("__")
        if key:
            setattr(getattr(built, section), key, value)
        else:
            setattr(built, section, value)
    return config.load(built)


def one_thread() -> dict[str, str]:
    """The environment of a process that a test starts: no network, no GPU, one thread."""
    root = str(Path(__file__).parents[2])
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "ACCELERATE_USE_CPU": "true",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": root,
    }


def call(capsys: Any, *argv: str) -> tuple[int, str]:
    """Of `ddpo train`: the exit code and, unless that is 0, the one line on stderr."""
    code, lines = main(["train", *argv]), capsys.readouterr().err.splitlines()
    assert len(lines) == (code != 0), lines
    return code, "".join(lines).removeprefix("ddpo: ")


def saved(run: Path) -> list[str]:
    """Everything in checkpoints/, half-written things too."""
    return sorted(path.name for path in (run / "checkpoints").glob("*"))


def done(run: Path) -> list[int]:
    """The iterations that have a line in metrics.jsonl."""
    return [row["iteration"] for row in metrics.read(run / "metrics.jsonl")]
