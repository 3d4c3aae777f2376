"""Our entry in a speed comparison of DDPO trainers: one epoch of the real trainer per line `epoch`
on stdin.

Speaks the line protocol of a harness whose folder (with protocol.py) is on PYTHONPATH: sampling
with log-probabilities, decoding, the JPEG reward, advantages and one pass of updates over every
step of every image.
"""

import argparse

import protocol  # pyright: ignore[reportMissingImports]
import torch

from ddpo import config
from ddpo.building import build
from ddpo.prompts import Prompt
from ddpo.rewards import Values
from ddpo.rollout.gradients import ImageGradients
from ddpo.rollout.trajectory import Trajectory
from ddpo.training.measures import Metrics
from ddpo.training.trainer import Trainer
from ddpo.training.update import Pass


def settings(arguments: argparse.Namespace) -> config.Config:
    images = arguments.sample_batch * arguments.batches
    return config.load(
        {
            "model": {"pretrained": arguments.pipeline, "dtype": arguments.dtype},
            "lora": {"rank": arguments.rank},
            "sampler": {
                "name": "ddim",
                "num_steps": arguments.steps,
                "eta": arguments.eta,
                "guidance_scale": arguments.guidance,
                "batch_size": arguments.sample_batch,
            },
            "rewards": [{"name": "jpeg_compressibility"}],
            "advantage": {"name": "batch"},
            "trainer": {
                "iterations": 1,
                "prompts_per_iteration": images,
                "samples_per_prompt": 1,
                "minibatches": 1,
                "micro_batch": arguments.train_batch,
                "while_sampling": {"auto": "auto", "true": True, "false": False}[
                    arguments.while_sampling
                ],
            },
        }
    )


def measured(trainer: Trainer, phases: protocol.Phases) -> None:
    """Put the harness's marks around the trainer's own phases."""
    rollout, update = trainer.rollout, trainer.update

    def marked_rollout(
        prompts: list[Prompt], gradients: ImageGradients | None = None
    ) -> tuple[Trajectory, Values, Metrics, Metrics]:
        found = rollout(prompts, gradients)
        phases.mark("sample_end")
        return found

    def marked_update(work: Pass) -> Metrics:
        phases.mark("train_start")
        return update(work)

    trainer.rollout, trainer.update = marked_rollout, marked_update


def main() -> None:
    parser = protocol.add_args(argparse.ArgumentParser())
    parser.add_argument("--while_sampling", choices=("auto", "true", "false"), default="auto")
    arguments = parser.parse_args()
    protocol.setup(arguments)
    trainer = build.trainer(settings(arguments))
    phases = protocol.Phases(arguments.device, arguments.sample_batch * arguments.batches)
    measured(trainer, phases)
    protocol.send(ready=True, name="ddpo", notes=[torch.__version__])
    while True:
        phases.start(flops=protocol.next_command() == "flops")
        trainer.iterate()
        phases.finish()


if __name__ == "__main__":
    main()
