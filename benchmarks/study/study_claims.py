"""What the papers claim, as inequalities between arms of the study, which decide on them."""

import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Result = dict[str, Any]
Pool = dict[tuple[str, str], dict[int, Result]]
"""(task, arm) -> seed -> result."""

T_975 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}
"""97.5 % point of Student's t for so many values, one fewer degrees of freedom."""

REWARD = {
    "compress": "jpeg_compressibility",
    "many": "jpeg_compressibility",
    "guided": "jpeg_compressibility",
}


def reward_of(task: str) -> str:
    return REWARD.get(task, "jpeg_incompressibility")


def gain(result: Result, judged: str = "animals") -> float:
    """Of the trained reward, after against before at the same seeds."""
    return result["final"][judged][reward_of(result["task"])]["mean"]


def recognized(result: Result, judged: str = "animals") -> float:
    return result["final"][judged]["emoji_recognition"]["tuned"]


def kl(result: Result) -> float:
    return result["curve"][-1]["kl_ref"]


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half the width of its 95 % interval over seeds (Student's t); infinite for one
    seed."""
    if len(values) < 2:
        return values[0], math.inf
    return statistics.mean(values), T_975[len(values)] * statistics.stdev(values) / math.sqrt(
        len(values)
    )


@dataclass(frozen=True)
class Check:
    """One inequality: the mean over common seeds of left - factor * right, of `measure`, is above
    0."""

    words: str
    task: str
    left: str
    right: str
    measure: Callable[[Result], float] = gain
    factor: float = 1.0

    def verdict(self, pool: Pool) -> tuple[str, str]:
        """held, not held, undecided or not run; and the numbers it rests on."""
        left, right = pool.get((self.task, self.left), {}), pool.get((self.task, self.right), {})
        seeds = sorted(left.keys() & right.keys())
        if not seeds:
            return "not run", ""
        mean, half = interval(
            [self.measure(left[s]) - self.factor * self.measure(right[s]) for s in seeds]
        )
        word = "held" if mean - half > 0 else "not held" if mean + half < 0 else "undecided"
        return word, f"{mean:+.3f} +- {half:.3f} over {len(seeds)} seeds"


@dataclass(frozen=True)
class Claim:
    """What a paper says, the arms that speak to it and the inequalities that decide."""

    number: int
    title: str
    source: str
    arms: tuple[tuple[str, str], ...]
    checks: tuple[Check, ...]
    sets: tuple[str, ...] = ("animals",)
    note: str = ""


def pairs(task: str, names: str) -> tuple[tuple[str, str], ...]:
    return tuple((task, name) for name in names.split())


def order(task: str, *names: str, measure: Callable[[Result], float] = gain) -> tuple[Check, ...]:
    """Each above the next."""
    words = "is recognized more often than" if measure is recognized else "above"
    return tuple(
        Check(f"{a} {words} {b}", task, a, b, measure) for a, b in itertools.pairwise(names)
    )


def rise(task: str, arm: str, judged: str) -> Check:
    return Check(
        f"{arm} rises on {judged}", task, arm, arm, lambda result: gain(result, judged), factor=0.0
    )


UNSEEN = "activities_heldout"
"""Combinations of animal and activity that no model of the emoji world was trained on."""
MANY = ("prdp", "grpo", "ddpo_group")
ALL_SETS = ("animals", "animals_heldout", UNSEEN)


def on_unseen(result: Result) -> float:
    return gain(result, UNSEEN)


def per_kl(result: Result) -> float:
    return gain(result) / kl(result)


CLAIMS = (
    Claim(
        1,
        "DDPO-IS >= DDPO-SF >> RWR ~ sparse RWR per reward query",
        "Black et al. 2023, figure 4",
        pairs("compress", "ddpo ddpo_sf rwr rwr_sparse rwr_uniform")
        + pairs("incompress", "ddpo ddpo_sf rwr rwr_sparse"),
        (
            Check("ddpo above 90 % of ddpo_sf", "compress", "ddpo", "ddpo_sf", factor=0.9),
            *order("compress", "ddpo_sf", "rwr"),
            *order("compress", "ddpo_sf", "rwr_sparse"),
            *order("compress", "rwr", "rwr_uniform"),
            Check("ddpo above 90 % of ddpo_sf", "incompress", "ddpo", "ddpo_sf", factor=0.9),
            *order("incompress", "ddpo_sf", "rwr"),
            *order("incompress", "ddpo_sf", "rwr_sparse"),
        ),
        note=(
            "rwr_uniform is a control: it weighs all images alike, so what it gains comes from "
            "fitting the model to its own pictures, round after round, and not from the reward. "
            "RWR has to gain more."
        ),
    ),
    Claim(
        2,
        "PRDP matches DDPO at small scale",
        "Deng et al. 2024, table 1",
        pairs("compress", "ddpo prdp") + pairs("incompress", "ddpo prdp"),
        (
            Check("prdp above 80 % of ddpo", "compress", "prdp", "ddpo", factor=0.8),
            Check("prdp above 80 % of ddpo", "incompress", "prdp", "ddpo", factor=0.8),
        ),
    ),
    Claim(
        3,
        (
            "With many prompts, each seen a few times, PRDP and GRPO rise on unseen prompts; "
            "DDPO with the statistics of each prompt struggles"
        ),
        "Deng et al. 2024, tables 2 and 3, with DDPO on group advantages as a third arm",
        pairs("many", "prdp grpo ddpo_group ddpo_per_prompt"),
        (
            *(rise("many", arm, UNSEEN) for arm in (*MANY, "ddpo_per_prompt")),
            *(
                Check(f"{arm} above ddpo_per_prompt", "many", arm, "ddpo_per_prompt", on_unseen)
                for arm in MANY
            ),
        ),
        ALL_SETS,
        (
            "297 composed prompts; ddpo_per_prompt draws 32 prompts an iteration and sees each "
            "about three times, the others draw 8 prompts of 4 images."
        ),
    ),
    Claim(
        4,
        "PRDP's beta is a dial against over-optimization",
        "Deng et al. 2024, section 5.3",
        pairs("compress", "prdp prdp_beta_middle prdp_beta_high"),
        (
            *order("compress", "prdp", "prdp_beta_middle", "prdp_beta_high"),
            *order("compress", "prdp_beta_high", "prdp_beta_middle", "prdp", measure=recognized),
        ),
        note="beta is 3e-5, 3 and 30, in kB per nat of the mean log-ratio.",
    ),
    Claim(
        5,
        (
            "Without clipping DDPO and PRDP are unstable; "
            "training without guidance while sampling with it collapses"
        ),
        "Deng et al. 2024, table 5; Black et al. 2023, appendix",
        pairs("compress", "ddpo_passes ddpo_passes_open prdp_passes prdp_passes_open")
        + pairs("guided", "ddpo ddpo_unguided"),
        (
            *order("compress", "ddpo_passes", "ddpo_passes_open"),
            *order("compress", "ddpo_passes", "ddpo_passes_open", measure=recognized),
            *order("compress", "prdp_passes", "prdp_passes_open"),
            *order("compress", "prdp_passes", "prdp_passes_open", measure=recognized),
            *order("guided", "ddpo", "ddpo_unguided"),
            *order("guided", "ddpo", "ddpo_unguided", measure=recognized),
        ),
        note=(
            "Four passes over each rollout, so that the clip has something to do; "
            "`open` is without it."
        ),
    ),
    Claim(
        6,
        "P3O-V2 has a better KL-reward front than clipped DDPO-IS",
        "Wu et al. 2023",
        pairs("compress", "ddpo p3o"),
        (Check("p3o gains more per KL", "compress", "p3o", "ddpo", per_kl),),
    ),
    Claim(
        7,
        "What is learned carries over to animals and combinations never trained on",
        "Black et al. 2023, figure 12",
        pairs("compress", "ddpo prdp"),
        tuple(rise("compress", arm, judged) for arm in ("ddpo", "prdp") for judged in ALL_SETS[1:]),
        ALL_SETS,
    ),
)
