"""Does a slow reward slow an iteration down? One that sleeps 80 % of a chunk's time, or not at all.

    OMP_NUM_THREADS=1 python benchmarks/async_reward.py [--rounds 7] [--chunks 4] [--share 0.8]

Iterations with and without the sleep alternate in one process, from the same weights, the same
optimizer and the same seeds; so they do the same work, and a machine that is busy with other things
is busy for both. The sleep is a share of the time that a chunk took to sample without it. Prints
the median seconds of both, and the median over the rounds of their ratio, which must stay below
1.15.
"""

import argparse
import copy
import statistics
import sys
import tempfile
import time
from pathlib import Path

from ddpo import config
from ddpo.building import build
from ddpo.training.trainer import Trainer

REWARD = """
import time
sleep_s = [0.0]
def sleepy(images, prompts, metadata):
    time.sleep(sleep_s[0])
    return images.mean((1, 2, 3))
"""


def restored(trainer: Trainer, weights: dict, optimizer: dict) -> Trainer:
    """The trainer as it was before its first iteration."""
    for name, parameter in trainer.policy.parameters().items():
        parameter.data.copy_(weights[name])
    trainer.optimizer.load_state_dict(copy.deepcopy(optimizer))
    trainer.iteration = 0
    return trainer


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--chunks", type=int, default=4, help="sampling chunks an iteration")
    parser.add_argument(
        "--share", type=float, default=0.8, help="of a chunk's time that the reward sleeps"
    )
    asked = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    (folder / "sleepy.py").write_text(REWARD)
    spec = str(folder / "sleepy.py")
    images = 8 * asked.chunks
    trainer = build.trainer(
        config.parse(
            [
                "--config",
                "smoke",
                "--rewards",
                f"[{{name: '{spec}'}}]",
                "--sampler.batch_size",
                "8",
                "--trainer.prompts_per_iteration",
                str(images // 4),
                "--trainer.samples_per_prompt",
                "4",
                "--trainer.minibatches",
                "1",
            ]
        )
    )
    module = sys.modules[trainer.mixture.rewards[0].score.__module__]
    weights = {name: p.detach().clone() for name, p in trainer.policy.parameters().items()}
    start = copy.deepcopy(trainer.optimizer.state_dict())
    restored(trainer, weights, start).iterate()  # warms up
    plain, slow, chunk_s = [], [], 0.0
    for _ in range(asked.rounds):
        for times, share in ((plain, 0.0), (slow, asked.share)):
            module.sleep_s[0] = share * chunk_s
            restored(trainer, weights, start)
            began = time.perf_counter()
            row = trainer.iterate()
            times.append(time.perf_counter() - began)
            if not share:
                chunk_s = row["time/sample"] / asked.chunks
    ratio = statistics.median(b / a for a, b in zip(plain, slow, strict=True))
    print(
        f"{asked.chunks} chunks of {chunk_s:.2f} s; "
        f"the reward sleeps {asked.share * chunk_s:.2f} s a chunk"
    )
    print(
        f"without the sleep {statistics.median(plain):.2f} s ({min(plain):.2f} to {max(plain):.2f})"
    )
    print(f"with the sleep    {statistics.median(slow):.2f} s ({min(slow):.2f} to {max(slow):.2f})")
    print(f"ratio {ratio:.3f} (median of {asked.rounds} rounds)")
    assert ratio < 1.15, "rewards do not overlap with sampling"


if __name__ == "__main__":
    main()
