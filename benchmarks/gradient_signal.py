"""How much of a policy gradient is signal: cosines between gradients of batches, before training.

    python benchmarks/gradient_signal.py --batches 4 --config alignment_emoji
    python benchmarks/gradient_signal.py --batches 3 --save pathwise.pt --config draft_emoji
    python benchmarks/gradient_signal.py --batches 2 --beside pathwise.pt --config alignment_emoji

draws batches as the first iterations of the configuration would (what follows is flags of `ddpo
train`) and takes the gradient of each at the pretrained weights, for every denoising step by itself
where the objective works on steps. The mean cosine between two batches is the share of signal in
|gradient|^2. A cosine with a gradient that has little noise says it from fewer batches: that of the
reward itself (draft), which `--save` keeps and `--beside` reads, for the same adapter.
"""

import argparse
import itertools
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from ddpo import config
from ddpo.runs import build
from ddpo.training.measures import Measured
from ddpo.training.trainer import Trainer
from ddpo.training.update import Pass


def gradients(trainer: Trainer, batch_number: int) -> Iterator[tuple[int, Tensor]]:
    """(step, gradient of the loss at it) of one batch; (0, gradient) without steps."""
    trainer.iteration = batch_number
    prompts = trainer.draw()
    trajectory, values, _, _ = trainer.rollout(prompts)
    batch, outcome = trainer.outcome(prompts, trajectory, values)
    groups = batch.reward.view(-1, trainer.sizes.samples_per_prompt)
    within = f", {groups.std(1).mean():.3f} within a prompt" if groups.shape[1] > 1 else ""
    print(f"batch {batch_number}: reward {outcome['reward/mean']:.3f}{within}", flush=True)
    whole = torch.ones_like(batch.stochastic)
    columns = [whole]
    if trainer.objective.scores_steps:
        dense = trainer.present_sampler.steps.stochastic
        places = dense.nonzero().flatten().tolist()
        columns = [torch.arange(len(dense)) == place for place in places]
    for column in columns:
        work = Pass(
            trainer.terms(trajectory, epoch=0),
            replace(batch, stochastic=column),
            trainer.objective,
            trainer.sizes.micro_batch,
            Measured(trainer.objective.ratio_bound),
            moved=False,
        )
        trainer.optimizer.zero_grad()
        work.backward(range(len(prompts)))
        parts = [
            p.grad.flatten() for p in trainer.policy.parameters().values() if p.grad is not None
        ]
        yield int(column.nonzero()[0]), torch.cat(parts) / work.loss_scale


def between(batches: Sequence[Tensor]) -> float:
    """The mean cosine over pairs."""
    pairs = itertools.combinations(batches, 2)
    return statistics.mean(cosine_similarity(a, b, dim=0).item() for a, b in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batches", type=int, default=2, help="2 or more")
    parser.add_argument("--save", type=Path, help="where the mean of normed gradients is kept")
    parser.add_argument("--beside", type=Path, help="such a file, to compare with")
    given, flags = parser.parse_known_args()
    settings = config.parse([*flags, "--run_dir", "runs/gradient_signal"])
    if settings.model.dtype == "auto":
        settings = config.in_precision(settings, build.precision(settings))
    trainer = build.trainer(settings)
    steps: dict[int, list[Tensor]] = {}
    for number in range(given.batches):
        for step, gradient in gradients(trainer, number):
            steps.setdefault(step, []).append(gradient)
    beside = torch.load(given.beside) if given.beside else None
    sums = [torch.zeros_like(gradient) for gradient in steps[min(steps)]]
    print(
        "step  |gradient|  cosines: between batches, from the first step on"
        + ("; with the other, from the first step on" if beside is not None else "")
    )
    for step, batches in sorted(steps.items()):
        sums = [total + gradient for total, gradient in zip(sums, batches, strict=True)]
        norm = statistics.mean(gradient.norm().item() for gradient in batches)
        row = [between(batches), between(sums)]
        if beside is not None:
            for several in (batches, sums):
                row.append(
                    statistics.mean(cosine_similarity(g, beside, dim=0).item() for g in several)
                )
        print(f"{step:4}  {norm:10.1e}  " + "  ".join(f"{value:6.3f}" for value in row))
    if given.save:
        torch.save(torch.stack([normalize(total, dim=0) for total in sums]).mean(0), given.save)


if __name__ == "__main__":
    main()
