"""Trains the emoji world's models from scratch: `python -m ddpo.models.emoji.pretrain --stage STAGE`.

Every batch is a function of (stage, step), lengths are counted in steps, and a stage that was stopped goes on
from its last checkpoint, so that the committed weights can be made again by one command a stage. Threads come
from OMP_NUM_THREADS (one by default: two threads on shared cores can be slower than one).

    vae        the autoencoder, on pictures               weights/pipeline/vae
    decoder    its decoder alone, longer, with the encoder (and so every latent) left as it is
    captioner  the judge, on pictures and questions       weights/captioner
    unet       denoiser and text encoder, on VAE latents  weights/pipeline (the rest of it)
    clip       the second judge, on pictures and captions weights/clip
    aesthetic  its aesthetic head, on a formula's ratings weights/clip/aesthetic.safetensors
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

WEIGHTS = Path(__file__).parents[1] / "ddpo" / "models" / "emoji" / "weights"
STAGES = {
    "vae": "autoencoder:Training", "decoder": "autoencoder:DecoderTraining",
    "captioner": "captioner:Training", "unet": "denoiser:Training",
    "clip": "clip:Training", "aesthetic": "aesthetic:Training",
}  # fmt: skip


class Stage(Protocol):
    """One model to train: its parameters, its loss at a step, and what is done with the result."""

    module: nn.Module
    steps: int
    lr: float
    ema_decay: float

    def loss(self, step: int) -> Tensor:
        """The loss of the batch that belongs to `step`."""
        ...

    def evaluate(self) -> dict[str, float]:
        """Quality on held-out scenes."""
        ...

    def save(self, folder: Path) -> None:
        """Write the model, in half precision, below `folder`."""
        ...


def learning_rate(step: int, steps: int, warmup: int = 200) -> float:
    """Linear warm-up, then a cosine down to 2 %; a factor of the stage's own rate."""
    return min(1.0, (step + 1) / warmup) * (0.51 + 0.49 * math.cos(math.pi * min(1.0, step / steps)))


def train(stage: Stage, steps: int, until: int, work: Path, every: int = 250) -> None:
    """Train to step `until` of a schedule of `steps`; each `every` steps a checkpoint and a log line."""
    parameters = [p for p in stage.module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, stage.lr, betas=(0.9, 0.99))
    ema = EMAModel(parameters, decay=stage.ema_decay)
    first, checkpoint = 0, work / "checkpoint.pt"
    if checkpoint.is_file():
        state = torch.load(checkpoint, weights_only=True)
        first = state["step"]
        stage.module.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
        ema.load_state_dict(state["ema"])
    started, losses = time.perf_counter(), []
    for step in tqdm(range(first, until), initial=first, total=until, disable=None):
        for group in optimizer.param_groups:
            group["lr"] = stage.lr * learning_rate(step, steps)
        torch.manual_seed(step)
        loss = stage.loss(step)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.step(parameters)
        losses.append(loss.item())
        if (step + 1) % every == 0 or step + 1 == until:
            row = {
                "step": step + 1,
                "loss": sum(losses) / len(losses),
                "wall_s": time.perf_counter() - started,
            }
            losses.clear()
            with open(work / "log.jsonl", "a") as log:
                log.write(json.dumps(row) + "\n")
            state = {"module": stage.module.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save({"step": step + 1, "ema": ema.state_dict(), **state}, checkpoint.with_suffix(".new"))
            os.replace(checkpoint.with_suffix(".new"), checkpoint)
    ema.copy_to(parameters)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stage", choices=STAGES, required=True)
    parser.add_argument("--steps", type=int, help="default: what the committed weights were trained for")
    parser.add_argument("--until", type=int, help="stop there, with the learning rate of the whole schedule")
    parser.add_argument(
        "--weights", type=Path, default=WEIGHTS, help="folder of pipeline/, captioner/, clip/"
    )
    parser.add_argument("--work", type=Path, default=Path("runs/pretrain"), help="checkpoints and logs")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    torch.manual_seed(0)
    work = arguments.work / arguments.stage
    work.mkdir(parents=True, exist_ok=True)
    module, _, name = STAGES[arguments.stage].partition(":")
    training = getattr(importlib.import_module(f"ddpo.models.emoji.{module}"), name)
    stage: Stage = training(torch.device(arguments.device), arguments.weights, work)
    steps = arguments.steps or stage.steps
    train(stage, steps, arguments.until or steps, work)
    stage.save(arguments.weights)
    print(json.dumps({"stage": arguments.stage, **stage.evaluate()}))


if __name__ == "__main__":
    main()
