"""What the papers claim, as inequalities between arms of the study, which decide on them."""

import itertools
from dataclasses import dataclass

from study_decisions import BUDGETS, Check, Pool
from study_fronts import (
    Measure,
    end_gain,
    end_recognition,
    gain_at_recognition,
    gain_within_kl,
    unseen_gain,
)

WORDS: dict[Measure, str] = {
    gain_at_recognition: "above",
    end_gain: "ends above",
    end_recognition: "is recognized more often at the end than",
}


@dataclass(frozen=True)
class Claim:
    """What a paper says, the arms that speak to it and the inequalities that decide.

    sets    those on which its arms are evaluated at every checkpoint
    judged  what of its checks is not as it was when the older verdict was given
    """

    number: int
    title: str
    source: str
    arms: tuple[tuple[str, str], ...]
    checks: tuple[Check, ...]
    judged: str
    sets: tuple[str, ...] = ("animals",)
    note: str = ""


def pairs(task: str, names: str) -> tuple[tuple[str, str], ...]:
    return tuple((task, name) for name in names.split())


def order(task: str, *names: str, measure: Measure = gain_at_recognition) -> tuple[Check, ...]:
    """Each above the next."""
    return tuple(
        Check(f"{a} {WORDS[measure]} {b}", task, a, b, measure)
        for a, b in itertools.pairwise(names)
    )


def rise(task: str, arm: str, judged: str) -> Check:
    return Check(f"{arm} rises on {judged}", task, arm, arm, unseen_gain(judged), factor=0.0)


UNSEEN = "activities_heldout"
"""Combinations of animal and activity that no model of the emoji world was trained on."""
MANY = ("prdp", "grpo", "ddpo_group")
ALL_SETS = ("animals", "animals_heldout", UNSEEN)

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
        "the gain at recognition >= 90 %, where it was the gain at the end",
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
        "the gain at recognition >= 90 %, where it was the gain at the end",
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
                Check(
                    *(f"{arm} above ddpo_per_prompt", "many", arm, "ddpo_per_prompt"),
                    unseen_gain(UNSEEN),
                )
                for arm in MANY
            ),
        ),
        (
            "the gain on unseen prompts at the checkpoint that is best on animals at recognition "
            ">= 90 %, where it was that at the end"
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
            *order("compress", "prdp", "prdp_beta_middle", "prdp_beta_high", measure=end_gain),
            *order(
                *("compress", "prdp_beta_high", "prdp_beta_middle", "prdp"),
                measure=end_recognition,
            ),
        ),
        (
            "gain and recognition at the end, as before, since the claim is about where a run "
            "ends; the table says whether a beta has the better front, too"
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
            *order("compress", "ddpo_passes", "ddpo_passes_open", measure=end_recognition),
            *order("compress", "prdp_passes", "prdp_passes_open"),
            *order("compress", "prdp_passes", "prdp_passes_open", measure=end_recognition),
            *order("guided", "ddpo", "ddpo_unguided"),
            *order("guided", "ddpo", "ddpo_unguided", measure=end_recognition),
        ),
        (
            "the gain at recognition >= 90 %, where it was the gain at the end; recognition at the "
            "end, as before"
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
        (Check("p3o gains more per KL", "compress", "p3o", "ddpo", gain_within_kl),),
        (
            "the largest gain within the KL at which the arm that stays closer ends, where it was "
            "the quotient of gain and KL at the end"
        ),
    ),
    Claim(
        7,
        "What is learned carries over to animals and combinations never trained on",
        "Black et al. 2023, figure 12",
        pairs("compress", "ddpo prdp"),
        tuple(rise("compress", arm, judged) for arm in ("ddpo", "prdp") for judged in ALL_SETS[1:]),
        (
            "the gain on unseen prompts at the checkpoint that is best on animals at recognition "
            ">= 90 %, where it was that at the end"
        ),
        ALL_SETS,
    ),
)

ROUNDS = ((1, 2, 4, 7), (3, 5, 6))
"""Claims by number: the first seeds of a round come before those of the next."""


def rounds() -> list[list[Check]]:
    """The checks of each round."""
    return [
        [check for claim in CLAIMS if claim.number in numbers for check in claim.checks]
        for numbers in ROUNDS
    ]


def refuted(pool: Pool) -> list[Check]:
    """The checks of claims that no further seed can save: one is not held, by both budgets."""
    return [
        check
        for claim in CLAIMS
        if all(
            any(each.verdict(pool, budget).word == "not held" for each in claim.checks)
            for budget in BUDGETS
        )
        for check in claim.checks
    ]


def sets_of(task: str, arm: str) -> list[str]:
    """The prompt sets on which an arm is evaluated at every checkpoint."""
    named = [claim.sets for claim in CLAIMS if (task, arm) in claim.arms]
    return [name for name in ALL_SETS if any(name in sets for sets in named)]
