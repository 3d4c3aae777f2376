"""What `ddpo serve` costs: a reward of 50 ms an image, in this process and through a server on
loopback.

    python benchmarks/remote_reward.py [--images 16] [--size 512] [--ms 50] [--rounds 15]
    [--batch-size 4]

The two are called in turns, on new images each round; medians and their ratio are printed. The
reward sleeps, as a processor does while its GPU works, and then takes the mean, so that answers can
be compared.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from ddpo import rewards


def slow(images, prompts, metadata, *, ms: float = 50.0):
    """The mean of an image, after so many ms each."""
    time.sleep(ms / 1000 * len(images))
    return images.mean((1, 2, 3))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, value in {"images": 16, "size": 512, "rounds": 15, "batch-size": 4}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--ms", type=float, default=50.0)
    given = parser.parse_args()
    name, params = f"{Path(__file__).resolve()}:slow", {"ms": given.ms}
    words = ["--reward", name, "--params", json.dumps(params), "--port", "0"]
    command = [sys.executable, "-m", "ddpo", "serve", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        url = next(word for word in server.stdout.readline().split() if word.startswith("http"))
        try:
            here = rewards.build(name, 1.0, params)
            there = rewards.build("remote", 1.0, {"url": url, "batch_size": given.batch_size})
            torch.set_num_threads(1)
            seconds: dict[str, list[float]] = {"in process": [], "remote": []}
            for i in range(given.rounds + 1):
                noise = torch.rand(
                    given.images,
                    3,
                    given.size,
                    given.size,
                    generator=torch.Generator().manual_seed(i),
                )
                images, values = (noise * 255).round() / 255, []
                for kind, reward in zip(seconds, (here, there), strict=True):
                    start = time.perf_counter()
                    values.append(reward(images, ["a fox"] * given.images, [{}] * given.images))
                    seconds[kind].append(time.perf_counter() - start)
                assert values[0].equal(values[1])
        finally:
            server.terminate()
    # the first warms up
    medians = {kind: statistics.median(each[1:]) for kind, each in seconds.items()}
    for kind, each in seconds.items():
        low, _, high = statistics.quantiles(each[1:])
        print(
            f"{kind:11} {medians[kind]:.3f} s a call of {given.images} (quartiles {low:.3f} to "
            f"{high:.3f})"
        )
    print(f"remote / in process: {medians['remote'] / medians['in process']:.3f}")


if __name__ == "__main__":
    main()
