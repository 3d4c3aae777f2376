"""docs/results.md from the JSONs of the study: no number there is written by hand."""

import json
import math
import textwrap
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import study_plots
from study_arms import CHECKPOINTS, FIRST_SEEDS, MOST_SEEDS, QUERIES, TUNED
from study_claims import CLAIMS, Claim
from study_decisions import BUDGETS, SAME, Check, Pool, Verdict, interval, limits_of, pace
from study_decisions import wrongly_decided as wrongly
from study_fronts import (
    Limits,
    Result,
    chosen,
    end_gain,
    end_recognition,
    gain,
    gain_at_recognition,
)

DOCS = Path(__file__).parents[2] / "docs"
Older = dict[str, Any]
OLDER = "older_verdicts.json"
"""What the study said before it compared fronts."""


def write(pool: Pool, folder: Path) -> None:
    """docs/results.md and docs/results_N.png."""
    older = json.loads((folder / OLDER).read_text(encoding="utf-8"))
    lines = [*head(pool), *summary(pool, older)]
    for claim in CLAIMS:
        lines += section(claim, pool, older)
        plot = DOCS / f"results_{claim.number}.png"
        plot.unlink(missing_ok=True)
        if speaks(claim, pool):
            study_plots.plot(claim, pool, plot)
    (DOCS / "results.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def head(pool: Pool) -> list[str]:
    """What was run, and how it is judged."""
    results = [result for seeds in pool.values() for result in seeds.values()]
    hours = sum(result["cpu_s"] for result in results) / 3600
    commits = ", ".join(sorted({result["commit"] for result in results}))
    many = f"{len(results)} run{'s' * (len(results) != 1)}"
    dtypes = ", ".join(f"{n} in {dtype}" for dtype, n in count(results, "dtype").items())
    rates = ", ".join(f"{family} {lr:g}" for family, lr in TUNED.items())
    steps = ", ".join(map(str, CHECKPOINTS))
    paragraphs = [
        (
            "Made by `python benchmarks/study/study.py report` from the runs in "
            "`benchmarks/results/study/`, which `python benchmarks/study/study.py run` makes; "
            "no number here is written by hand. The model is the small embedded one: "
            "a toy world of emoji scenes, not Stable Diffusion."
        ),
        (
            f"{many} ({dtypes}), {hours:.1f} CPU-hours on one core each, commits "
            f"{commits}. Every run has {QUERIES} reward queries (640 in the task `guided`, "
            "480 in the arms with `passes`). "
            f"After iterations {steps} it is evaluated: two pictures of each of the 45 "
            "animals, at the same seeds in every run and before it. The learning rates are those "
            "of the older study, one of two for every method, by the gain of a run at a seed that "
            f"no result uses: {rates}. Nobody has tuned them for what is compared now."
        ),
        (
            "**Gain at recognition >= 90 %**: the largest gain of the trained reward among those "
            "checkpoints at which the captioner, never trained on, names at least 90 % of the "
            "animals; the start counts, with a gain of 0. *At equal queries* all checkpoints "
            "count; *at equal CPU time* those within the training time of the faster of the two "
            f"arms (and {100 * (SAME - 1):.0f} % more: runs of one arm differ by that), by the "
            "mean pace of each arm's runs. Evaluating is no part of that time. The checkpoint is "
            "chosen by the pictures that its gain is then measured on, for every arm alike, so "
            "that small gains are too large by some noise; gains on other sets are free of it."
        ),
        (
            "A check is `held` or `not held` where the 95 % interval of its mean difference "
            "(Student's t, over common seeds) excludes 0, looked at with three seeds and after "
            f"each further one; with {MOST_SEEDS} it stays undecided. Where two arms "
            f"are equal, looking so often decides in {100 * wrongly():.0f} % of the cases, by "
            "simulation, not in 5 %. A claim is what its worst check is."
        ),
    ]
    texts = [line for words in paragraphs for line in (textwrap.fill(words, 110), "")]
    return ["# The papers' claims in the emoji world", "", *texts]


def count(results: Sequence[Result], key: str) -> dict[str, int]:
    return dict(Counter(result[key] for result in results).most_common())


def summary(pool: Pool, older: Older) -> list[str]:
    """Every claim with its verdicts, the older one, and what was changed in judging it."""
    lines = ["| claim | at equal queries | at equal CPU time | older verdict | judged by |"]
    lines.append("| --- | --- | --- | --- | --- |")
    for claim in CLAIMS:
        words = [claim_verdict(claim, pool, budget) for budget in BUDGETS]
        before = older["claims"][str(claim.number)]["verdict"]
        cells = [f"{claim.number}. {claim.title}", *words, before, claim.judged]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", textwrap.fill(f"Older verdicts: {older['from']}.", 110)]
    return [*lines, "", textwrap.fill(left(pool), 110)]


def left(pool: Pool) -> str:
    """What has not been run yet, in words."""
    checks = [check for claim in CLAIMS for check in claim.checks]
    found = [check.verdict(pool, budget) for check in checks for budget in BUDGETS]
    unseen = sorted({f"{task}.{arm}" for c in CLAIMS for task, arm in c.arms} - named(pool))
    still = sum(each.open for each in found)
    words = f"**Not finished**: {still} of {len(found)} comparisons could be decided by more runs."
    if not still:
        words = f"**Finished**: all {len(found)} comparisons are decided or have their seeds."
    return words + (f" Not run at all: {', '.join(unseen)}." if unseen else "")


def named(pool: Pool) -> set[str]:
    return {f"{task}.{arm}" for task, arm in pool}


def speaks(claim: Claim, pool: Pool) -> bool:
    """Whether there is something to show."""
    return any(arm in pool for arm in claim.arms)


def claim_verdict(claim: Claim, pool: Pool, budget: str) -> str:
    """All checks must hold; one that does not refutes the claim."""
    found = [check.verdict(pool, budget) for check in claim.checks]
    words = {each.word for each in found}
    worst = next((word for word in ("not held", "undecided", "held") if word in words), "not run")
    if worst == "undecided" and not any(each.open for each in found):
        worst = f"undecided at {MOST_SEEDS} seeds"
    return f"{worst}, part not run" if "not run" in words - {worst} else worst


def section(claim: Claim, pool: Pool, older: Older) -> list[str]:
    """The arms' numbers, the plot and the checks of one claim."""
    checks = older["claims"][str(claim.number)]["checks"]
    note = textwrap.fill(f"{claim.source}. {claim.note}".strip(), 110)
    lines = ["", f"## {claim.number}. {claim.title}", "", note, ""]
    lines += [textwrap.fill(f"Judged by {claim.judged}.", 110), ""]
    if speaks(claim, pool):
        lines += [*table(claim, pool), "", f"![fronts](results_{claim.number}.png)", ""]
    lines += awaited(claim, pool, older)
    lines.append("| check | at equal queries | | at equal CPU time | | older | |")
    lines.append("| --- | --- | --- | --- | --- | --- | --- |")
    for check in claim.checks:
        cells = [cell for budget in BUDGETS for cell in shown(check.verdict(pool, budget))]
        before = checks.get(older_name(check), {"difference": "", "verdict": ""})
        cells += [before["difference"], before["verdict"]]
        lines.append(f"| {check.task}: {check.words} | {' | '.join(cells)} |")
    return lines


def awaited(claim: Claim, pool: Pool, older: Older) -> list[str]:
    """What the older study found at the end of those arms that lack their first seeds yet."""
    missing = [f"{t}.{a}" for t, a in claim.arms if len(pool.get((t, a), {})) < FIRST_SEEDS]
    known = [name for name in missing if name in older["arms"]]
    if not known:
        return []
    lines = ["Arms that have not run three times yet, at the end of the older runs:", ""]
    lines.append("| arm | gain at the end | recognized at the end | CPU-minutes |")
    lines.append("| --- | --- | --- | --- |")
    for name in known:
        lines.append(f"| {' | '.join([name, *older['arms'][name].values()])} |")
    return [*lines, ""]


def older_name(check: Check) -> str:
    """Of the same inequality before: it was always measured at the end."""
    words = check.words.replace("ends above", "above").replace("often at the end", "often")
    return f"{check.task}: {words}"


def shown(verdict: Verdict) -> tuple[str, str]:
    """The numbers and the word."""
    if not verdict.seeds:
        return "", verdict.word
    number = f"{verdict.mean:+.3f}"
    if math.isfinite(verdict.half):
        number += f" ± {verdict.half:.3f}"
    word = verdict.word
    if word == "undecided" and not verdict.open:
        word = f"undecided at {MOST_SEEDS} seeds"
    return f"{number} over {verdict.seeds} seed{'s' * (verdict.seeds > 1)}", word


def table(claim: Claim, pool: Pool) -> list[str]:
    """The mean over seeds of every number that an arm has, with half its 95 % interval."""
    titles = ["task", "arm", "seeds", "**gain at recognition >= 90 %**", "at equal CPU time"]
    titles += [f"on {judged} there" for judged in claim.sets[1:]]
    titles += ["gain at the end", "recognized at the end", "KL at the end, nats", "CPU-minutes"]
    lines = [f"| {' | '.join(titles)} |", f"|{' --- |' * len(titles)}"]
    for task, arm in claim.arms:
        if seeds := pool.get((task, arm), {}):
            cells = [task, arm, str(len(seeds)), *numbers(claim, pool, task, arm)]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def numbers(claim: Claim, pool: Pool, task: str, arm: str) -> list[str]:
    """A row of the table, from the third column on."""
    results = list(pool[task, arm].values())
    others = [pool[each] for each in claim.arms if each[0] == task and each in pool]
    everything, fast = Limits(), limits_of([pool[task, arm], *others], "CPU")[0]
    ends = [result["checkpoints"][-1] for result in results]
    columns = [
        [gain_at_recognition(result, everything) for result in results],
        [gain_at_recognition(result, fast) for result in results],
        *(
            [gain(result, chosen(result, everything), judged) for result in results]
            for judged in claim.sets[1:]
        ),
        [end_gain(result, everything) for result in results],
        [end_recognition(result, everything) for result in results],
        [end["kl"] for end in ends],
    ]
    minutes = pace(pool[task, arm]) * max(end["iteration"] for end in ends) / 60
    return [*map(mean_of, columns), f"{minutes:.1f}"]


def mean_of(values: Sequence[float]) -> str:
    mean, half = interval(values)
    return f"{mean:.3g}" + (f" ± {half:.2g}" if math.isfinite(half) else "")
