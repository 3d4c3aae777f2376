"""Train the emoji world's models from scratch: `python -m ddpo.models.emoji.pretrain --stage X`.

Every batch is a function of (stage, step), lengths are counted in steps, and a stage that was
stopped goes on from its last checkpoint, so that the committed weights can be made again by one
command a stage (two for the first two flow stages: weights/README.md has them). Threads come from
OMP_NUM_THREADS (one by default: two threads on shared cores can be slower than one).

    vae        the autoencoder, on pictures               weights/pipeline/vae
    decoder    its decoder alone, longer, with the encoder (and so every latent) left as it is
    captioner  the judge, on pictures and questions       weights/captioner
    unet       denoiser and text encoder, on VAE latents  weights/pipeline (the rest of it)
    clip       the second judge, on pictures and captions weights/clip
    aesthetic  its aesthetic head, on a formula's ratings weights/clip/aesthetic.safetensors
    reader     the reader of looks, on the UNet's pictures weights/reader
    flow_vae   the flow model's autoencoder, on pictures  weights/flow/vae
    flow       the flow model and its text encoders       weights/flow (the rest of it)
    flow_decoder  that autoencoder's decoder alone, longer, with every latent left as it is
"""

import argparse
import importlib
import json
import math
import os
import time
from pathlib import Path
from typing import Protocol

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from tqdm import tqdm

WEIGHTS = Path(__file__).parent / "weights"
STAGES = {
    "vae": "autoencoder:Training",
    "decoder": "autoencoder:DecoderTraining",
    "captioner": "captioner:Training",
    "unet": "denoiser:Training",
    "clip": "clip:Training",
    "aesthetic": "aesthetic:Training",
    "reader": "reader.training:Training",
    "flow_vae": "flow_autoencoder:Training",
    "flow": "flow:Training",
    "flow_decoder": "flow_autoencoder:DecoderTraining",
}


class Stage(Protocol):
    """One model to train: its parameters, its loss at a step, and what is done with the result."""

    module: nn.Module
    steps: int
    """The length of the schedule; `train` sets it to the one it keeps to."""

    lr: float
    ema_decay: float

    def loss(self, step: int) -> Tensor:
        """The loss of the batch that belongs to `step`."""
        ...

    def evaluate(self) -> dict[str, float]:
        """Quality on held-out scenes."""
        ...

    def load(self, folder: Path) -> None:
        """Take the weights that `save` wrote below `folder`."""
        ...

    def save(self, folder: Path) -> None:
        """Write the model, in half precision, below `folder`."""
        ...


def learning_rate(step: int, steps: int, warmup: int = 200) -> float:
    """Linear warm-up, then a cosine down to 2 %; a factor of the stage's own rate."""
    return min(1.0, (step + 1) / warmup) * (
        0.51 + 0.49 * math.cos(math.pi * min(1.0, step / steps))
    )


class Pace:
    """The length of a schedule: a number of steps, or as many as fit into `seconds`.

    The time per step is measured after 80 steps, and every 512 from then on, over the steps since
    the last time: the length follows, and the rate of learning with it, which hardly depends on it
    at the beginning.
    """

    def __init__(self, steps: int, seconds: float | None) -> None:
        self.seconds = seconds
        self.started = time.perf_counter()
        self.calls = 0
        self.last = (0, 0.0)
        self.steps = steps if seconds is None else 1_000_000

    def after(self, step: int) -> None:
        """Take note that `step` steps are done."""
        self.calls += 1
        if self.seconds is None or (self.calls not in (16, 80) and self.calls % 512):
            return
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        elapsed = time.perf_counter() - self.started
        if self.calls > 16:  # the first steps are slower
            step_s = (elapsed - self.last[1]) / (self.calls - self.last[0])
            self.steps = step + max(0, int((self.seconds - elapsed) / step_s))
            print(json.dumps({"step": step, "step_s": step_s, "steps": self.steps}), flush=True)
        self.last = self.calls, elapsed


def train(
    stage: Stage, pace: Pace, until: int | None, work: Path, every: int = 250, first_seed: int = 0
) -> None:
    """Train to the end of the schedule, or to step `until`.

    A checkpoint and a line of the log are written every `every` steps.
    """
    parameters = [p for p in stage.module.parameters() if p.requires_grad]
    fused = parameters[0].device.type == "cuda"
    optimizer = torch.optim.AdamW(parameters, stage.lr, betas=(0.9, 0.99), fused=fused)
    ema = EMAModel(parameters, decay=stage.ema_decay, foreach=fused)
    step, checkpoint = 0, work / "checkpoint.pt"
    if checkpoint.is_file():
        state = torch.load(checkpoint, weights_only=True)
        step = state["step"]
        stage.module.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
        ema.load_state_dict(state["ema"])
    started, losses = time.perf_counter(), []
    bar = tqdm(initial=step, total=pace.steps, disable=None)
    while step < (until or pace.steps):
        stage.steps = pace.steps
        for group in optimizer.param_groups:
            group["lr"] = stage.lr * learning_rate(step, pace.steps)
        torch.manual_seed(first_seed + step)
        loss = stage.loss(step)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.step(parameters)
        losses.append(loss.detach())
        step += 1
        bar.update()
        pace.after(step)
        if step % every == 0 or step >= (until or pace.steps):
            row = {
                "step": step,
                "loss": torch.stack(losses).mean().item(),
                "wall_s": time.perf_counter() - started,
            }
            losses.clear()
            with open(work / "log.jsonl", "a") as log:
                log.write(json.dumps(row) + "\n")
            state = {"module": stage.module.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save(
                {"step": step, "ema": ema.state_dict(), **state}, checkpoint.with_suffix(".new")
            )
            os.replace(checkpoint.with_suffix(".new"), checkpoint)
    ema.copy_to(parameters)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stage", choices=STAGES, required=True)
    parser.add_argument(
        "--steps", type=int, help="default: what the committed weights were trained for"
    )
    parser.add_argument(
        "--seconds", type=float, help="as many steps as fit into this time, instead"
    )
    parser.add_argument(
        "--every", type=int, default=250, help="steps from one checkpoint to the next"
    )
    parser.add_argument(
        "--further",
        action="store_true",
        help="start from the weights that are there (the flow stages)",
    )
    parser.add_argument(
        "--lr", type=float, help="learning rate at the beginning; default: the stage's"
    )
    parser.add_argument("--first-seed", type=int, default=0, help="seed of the first step's batch")
    parser.add_argument("--scenes", type=int, help="how many to train on (flow_vae and flow)")
    parser.add_argument(
        "--until", type=int, help="stop there, with the learning rate of the whole schedule"
    )
    parser.add_argument(
        "--weights", type=Path, default=WEIGHTS, help="folder of pipeline/, captioner/, clip/"
    )
    parser.add_argument(
        "--work", type=Path, default=Path("runs/pretrain"), help="checkpoints and logs"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    module, _, name = STAGES[arguments.stage].partition(":")
    training = getattr(importlib.import_module(f"ddpo.models.emoji.{module}"), name)
    if arguments.further and not hasattr(training, "load"):
        parser.error(f"--further: stage {arguments.stage} cannot; only the flow stages can")
    if arguments.scenes and "scene_count" not in vars(training):
        parser.error(f"--scenes: stage {arguments.stage} has scenes of its own")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    torch.manual_seed(0)
    work = arguments.work / arguments.stage
    work.mkdir(parents=True, exist_ok=True)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    if arguments.scenes:
        training.scene_count = arguments.scenes
    stage: Stage = training(torch.device(arguments.device), arguments.weights, work)
    stage.lr = arguments.lr or stage.lr
    if arguments.further:
        stage.load(arguments.weights)
    pace = Pace(arguments.steps or stage.steps, arguments.seconds)
    train(stage, pace, arguments.until, work, arguments.every, arguments.first_seed)
    stage.save(arguments.weights)
    print(json.dumps({"stage": arguments.stage, "steps": pace.steps, **stage.evaluate()}))


if __name__ == "__main__":
    main()
