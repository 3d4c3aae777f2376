"""What relaxed letters and parallel steps cost, on three places of three letters, by counting.

    python benchmarks/toy_letters.py

prints the total variation between exp(r / alpha) p_pretrained and the law that training ends with:
exact ascent, DRAKES with soft and straight-through letters at several temperatures, one letter at a
time; and that between the base's own law and its chain of n parallel steps. About six CPU-minutes.
"""

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

import toy_sequences as toy

from ddpo.samplers.masked import masked

TEMPERATURES, PARALLEL = (0.1, 0.2, 0.5, 1.0), (1, 2, 4, 8, 32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--iterations", type=int, default=toy.ITERATIONS)
    iterations = parser.parse_args().iterations
    torch.set_num_threads(1)
    law, reward = toy.joint(), toy.reward_of()
    base, best = toy.conditionals(law), toy.optimum(law, reward)
    policy = toy.Table(base)
    for count in PARALLEL:
        chain = toy.law_of(policy, masked(policy.schedule, count))[0].detach()
        print(f"{count:3} parallel steps, base: {toy.variation(chain, law):.4f}", flush=True)
    steps = masked(policy.schedule, toy.PLACES, reveal="counted")
    print(f"start: {toy.variation(law, best):.4f}")

    def end(name: str, policy: toy.Table) -> None:
        print(
            f"{name}: {toy.variation(toy.law_of(policy, steps)[0].detach(), best):.4f}", flush=True
        )

    def exact(policy: toy.Table) -> torch.Tensor:
        reached, kl = toy.law_of(policy, steps, base)
        return toy.ALPHA * kl - (reached * reward).sum()

    toy.descend(policy, lambda i: exact(policy), iterations)
    end("exact ascent", policy)
    for straight in (False, True):
        for temperature in TEMPERATURES:
            policy = toy.Table(base)
            how = {"temperature": temperature, "straight_through": straight}
            toy.descend(
                policy,
                lambda i, p=policy, h=how: toy.drakes_loss(p, steps, reward, i, **h),
                iterations,
            )
            word = "straight-through" if straight else "soft"
            end(f"{word}, temperature {temperature}", policy)


if __name__ == "__main__":
    main()
