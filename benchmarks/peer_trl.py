"""TRL's DDPO trainer in a speed comparison: one epoch of its own loop per line `epoch` on stdin.

TRL removed this trainer in September 2025; `pip install "trl==0.22.2" --no-deps --target FOLDER`
gets the last release that has it, and FOLDER goes on PYTHONPATH beside the harness's. The loop is
TRL's, unmodified: only marks are put around its phases. Speaks the line protocol of contestant.py.
"""

import argparse
import itertools
import tempfile
from typing import Any

import numpy as np
import protocol  # pyright: ignore[reportMissingImports]
import torch
from accelerate import PartialState
from trl import (  # pyright: ignore[reportMissingImports]
    DDPOConfig,
    DDPOTrainer,
    DefaultDDPOStableDiffusionPipeline,
)


def settings(arguments: argparse.Namespace, folder: str) -> Any:
    """One optimizer step per epoch, over all images and steps, as contestant.py asks of ours."""
    images = arguments.sample_batch * arguments.batches
    return DDPOConfig(
        log_with="tensorboard",
        project_kwargs={"project_dir": folder},
        mixed_precision={"fp32": "no"}.get(arguments.dtype, arguments.dtype),
        sample_num_steps=arguments.steps,
        sample_eta=arguments.eta,
        sample_guidance_scale=arguments.guidance,
        sample_batch_size=arguments.sample_batch,
        sample_num_batches_per_epoch=arguments.batches,
        train_batch_size=arguments.train_batch,
        train_gradient_accumulation_steps=images // arguments.train_batch,
        per_prompt_stat_tracking=False,
        save_freq=10**9,
    )


def reward(images: torch.Tensor, prompts: tuple[str], metadata: tuple[Any]) -> tuple[Any, Any]:
    """The harness's JPEG reward."""
    return torch.as_tensor(np.asarray(protocol.jpeg_reward(images.float()))), {}


def measured(trainer: Any, phases: protocol.Phases) -> None:
    """Put the harness's marks around the trainer's own phases."""
    sample, train = trainer._generate_samples, trainer._train_batched_samples

    def marked_sample(*arguments: Any, **options: Any) -> Any:
        found = sample(*arguments, **options)
        phases.mark("sample_end")
        return found

    def marked_train(*arguments: Any, **options: Any) -> Any:
        phases.mark("train_start")
        return train(*arguments, **options)

    trainer._generate_samples, trainer._train_batched_samples = marked_sample, marked_train


def main() -> None:
    arguments = protocol.add_args(argparse.ArgumentParser()).parse_args()
    if arguments.rank != 4:
        raise SystemExit("TRL's pipeline has LoRA of rank 4 and no other: --rank 4")
    protocol.setup(arguments)
    PartialState(cpu=arguments.device == "cpu")  # TRL's pipeline logs before it has one
    prompts = itertools.cycle(protocol.PROMPTS)
    with tempfile.TemporaryDirectory() as folder:
        trainer = DDPOTrainer(
            settings(arguments, folder),
            reward,
            lambda: (next(prompts), {}),
            DefaultDDPOStableDiffusionPipeline(arguments.pipeline, use_lora=True),
        )
        phases = protocol.Phases(arguments.device, arguments.sample_batch * arguments.batches)
        measured(trainer, phases)
        protocol.send(ready=True, name="trl", notes=[torch.__version__])
        for epoch in itertools.count():
            phases.start(flops=protocol.next_command() == "flops")
            trainer.step(epoch, epoch)
            phases.finish()


if __name__ == "__main__":
    main()
