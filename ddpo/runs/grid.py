"""One picture of many: prompts down; checkpoints, runs, guidance, LoRA scales, steps, tastes or
seeds across."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from ddpo import prompts
from ddpo.building import build
from ddpo.errors import UserError
from ddpo.evaluation import matched
from ddpo.evaluation.table import table
from ddpo.prompts import Prompt
from ddpo.rollout.sample import Sampler
from ddpo.runs.finished import Run


@dataclass(frozen=True)
class Across:
    """What differs from column to column; at most one has several values.

    Without any these are the base and the checkpoints that are kept.

    checkpoint   the weights of all other columns: "last", "best", "000020", "base"; None: the last
    taste        whose they are, with a word for each, as `taste.of` of the run gives them
    taste_scale  of all of these: 0 is nobody's, 1 as trained
    lora_scale   where tastes differ, one at most, which is that of all columns but the base
    """

    checkpoint: str | None = None
    lora_scale: Sequence[float] = ()
    guidance_scale: Sequence[float] = ()
    num_steps: Sequence[int] = ()
    seed: Sequence[int] = (0,)
    taste: Sequence[tuple[str, Tensor]] = ()
    taste_scale: float = 1.0

    def check(self, runs: int) -> None:
        """Raises UserError where two things differ across."""
        several = {"several runs": runs > 1, "--seed": len(self.seed) > 1}
        several |= {"--lora_scale": len(self.lora_scale) > bool(self.taste)}
        several |= {"--guidance_scale": bool(self.guidance_scale)}
        several |= {"--num_steps": bool(self.num_steps), "tastes": bool(self.taste)}
        asked = [name for name, given in several.items() if given]
        if len(asked) > 1:
            raise UserError(
                f"grid: {' and '.join(asked)} would differ across the columns; keep one of them"
            )


@dataclass(frozen=True)
class Column:
    """One column: whose weights, how it is sampled, and from which seed."""

    title: str
    run: Run
    weights: str
    sampler: Sampler
    seed: int
    taste: Tensor | None = None


def interpolated(
    first: tuple[str, Tensor], last: tuple[str, Tensor], between: int
) -> list[tuple[str, Tensor]]:
    """Two tastes, and so many between them at equal distances."""
    shares = [i / (between + 1) for i in range(1, between + 1)]
    inner = [(f"{s:.2g} of the way", first[1].lerp(last[1], s)) for s in shares]
    return [first, *inner, last]


def grid(
    runs: Sequence[Run],
    prompt_source: str | None = None,
    count: int = 6,
    across: Across | None = None,
) -> Image.Image:
    """`count` prompts down, evenly spaced over their set.

    Each row has the same noise, but where the seeds are what differs. The scores of the trained
    rewards and of the judges of the first run stand under each picture.
    """
    across = across or Across()
    across.check(len(runs))
    chosen = _prompts(runs[0], prompt_source, count)
    settings = runs[0].config
    judges = build.all_rewards(settings, runs[0].policy)
    timeout_s = settings.trainer.reward_timeout_s
    titles, shots = [], []
    for column in _columns(runs, across):
        seeds = [column.seed] * len(chosen)
        asked = chosen
        if column.taste is not None:
            asked = [replace(prompt, taste=column.taste) for prompt in chosen]
        arguments = (column.sampler, asked, seeds, judges)
        with column.run.policy.weights(column.weights):
            shots.append(matched.shoot(column.run.policy, *arguments, timeout_s=timeout_s))
        titles.append(column.title)
    rows = list(zip(*shots, strict=True))
    captions = [
        ["  ".join(f"{shot.scores[j.name]:.3f}" for j in judges) for shot in row] for row in rows
    ]
    cells = [[shot.image for shot in row] for row in rows]
    note = f"scores: {', '.join(judge.name for judge in judges)}"
    if across.taste:
        scales = {"LoRA": (*across.lora_scale, 1.0)[0], "tastes": across.taste_scale}
        note += "".join(f"; {name} x {scale:g}" for name, scale in scales.items() if scale != 1)
    return table(cells, [prompt.text for prompt in chosen], titles, captions, title=f"\n{note}")


def _prompts(run: Run, source: str | None, count: int) -> list[Prompt]:
    known = build.prompt_set(run.config) if source is None else prompts.named_or_file(source)
    return [known[len(known) * i // count] for i in range(min(count, len(known)))]


def _columns(runs: Sequence[Run], across: Across) -> Iterator[Column]:
    run, seed = runs[0], across.seed[0]
    weights = across.checkpoint or "last"

    def column(title: str, weights: str = weights, scale: float = 1.0, **changed: Any) -> Column:
        sampler = _sampler(run, **changed) if changed else run.sampler
        return Column(title, run, run.remember(weights, scale), sampler, seed)

    if across.guidance_scale or across.num_steps:
        yield from (column(f"guidance {g:g}", guidance_scale=g) for g in across.guidance_scale)
        yield from (column(f"{steps} steps", num_steps=steps) for steps in across.num_steps)
        return
    if len(across.seed) > 1:
        own = run.remember(weights)
        yield from (Column(f"seed {s}", run, own, run.sampler, s) for s in across.seed)
        return
    yield column("base", "base")
    if across.taste:
        own = run.remember(weights, *across.lora_scale, taste_scale=across.taste_scale)
        yield from (Column(words, run, own, run.sampler, seed, t) for words, t in across.taste)
    elif len(runs) > 1:
        for one, name in zip(runs, _names(runs), strict=True):
            yield Column(name, one, one.remember(weights), one.sampler, seed)
    elif across.lora_scale:
        yield from (column(f"scale {s:g}", scale=s) for s in across.lora_scale)
    elif across.checkpoint:
        yield column(across.checkpoint)
    else:
        yield from (column(f"iteration {int(name)}", name) for name in run.checkpoints)


def _names(runs: Sequence[Run]) -> list[str]:
    """The runs' names, or their paths where two have one name."""
    names = [Path(run.folder).resolve().name for run in runs]
    both = zip(names, runs, strict=True)
    return [name if names.count(name) == 1 else str(run.folder) for name, run in both]


def _sampler(run: Run, **changed: Any) -> Sampler:
    """That of the run's evaluation, with other settings. Raises UserError for invalid ones."""
    settings = run.config.model_copy(deep=True)
    own = settings.evaluation.sampler or settings.sampler
    for name, value in changed.items():
        setattr(own, name, value)
    return build.evaluation_sampler(settings, run.policy)
