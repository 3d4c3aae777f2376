"""Mean rewards of a run conditioned on weights, from one corner to the other, at matched seeds.

    python benchmarks/mixtures.py RUN_DIR [CHECKPOINT]

A line for the base, for nobody's taste, for each reward alone and for three mixtures of each two,
over the prompts of the run, a seed each.
"""

import sys
from itertools import combinations

from torch import Tensor

from ddpo.building import build
from ddpo.images import from_pil
from ddpo.runs.finished import Run


def main(run_dir: str, checkpoint: str = "tuned") -> None:
    run = Run(run_dir)
    prompts = build.plain_prompts(run.config).prompts
    judges = build.all_rewards(run.config, run.policy)
    texts, metadata = [p.text for p in prompts], [p.metadata for p in prompts]
    names = [judge.name for judge in judges[: len(run.config.rewards)] if judge.weight]
    tastes: dict[str, Tensor | None] = {"base": None, "nobody": None}
    tastes |= {f"{name} 1": run.taste.of({name: 1}) for name in names}
    for first, second in combinations(names, 2):
        for share in (0.75, 0.5, 0.25):
            mixture = {first: share, second: 1 - share}
            words = ", ".join(f"{name} {weight:g}" for name, weight in mixture.items())
            tastes[words] = run.taste.of(mixture)
    for label, taste in tastes.items():
        column = "base" if label == "base" else checkpoint
        images = from_pil(run.sample(texts, list(range(len(texts))), column, taste=taste))
        means = [judge(images, texts, metadata).nanmean().item() for judge in judges]
        words = (f"{judge.name} {mean:.3f}" for judge, mean in zip(judges, means, strict=True))
        print(f"{label:46}", *words)


if __name__ == "__main__":
    main(*sys.argv[1:])
