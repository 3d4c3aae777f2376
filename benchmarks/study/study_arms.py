"""What the study runs: tasks (a reward and its prompts), arms (a method with its options)."""

from dataclasses import dataclass
from pathlib import Path

FIRST_SEEDS, MOST_SEEDS = 3, 8
"""A check is looked at with so many seeds first, and undecided for good with so many."""

TUNING_SEED = 100
QUERIES = 960
"""Images of a run, the same for every arm: 30 iterations of 32."""

RATES = (2e-3, 5e-3)
TUNED = {"ddpo": 5e-3, "ddpo_sf": 5e-3, "rwr": 5e-3, "prdp": 5e-3}
"""The better of RATES for each family, by the gain of a run at a seed that no result uses."""

FAMILY = {"grpo": "ddpo", "p3o": "prdp"}
"""Arms that are not named after the family whose learning rate they take."""

COMMON = [
    "--config",
    "demo",
    "--log.images",
    "0",
    "--checkpoint.every",
    "1000",
    "--trainer.iterations",
    "30",
    "--trainer.prompts_per_iteration",
    "8",
    "--trainer.samples_per_prompt",
    "4",
    "--trainer.epochs",
    "1",
    "--model.dtype",
    "auto",
    "--sampler.batch_size",
    "32",
]
"""The demo's model, sampler and schedule: 8 DDIM steps, eta 1, no guidance, LoRA 16, AdamW,
cosine. A run says which dtype `auto` was."""

CHECKPOINTS = (2, 3, 4, 6, 10, 15, 20, 25, 30)
"""Iterations after which a run is evaluated, besides the start: closer together where the quickest
arms, those of RWR, lose the animals."""

TASKS = {
    "compress": ["--rewards", "[{name: jpeg_compressibility}]"],
    "incompress": ["--rewards", "[{name: jpeg_incompressibility}]"],
    "many": ["--prompts.path", str(Path(__file__).with_name("composed.py"))],
    "guided": ["--sampler.guidance_scale", "3", "--trainer.iterations", "20"],
}
"""Reward and prompts; where nothing is said, compressibility on the 45 animals."""

CLIP = ["--objective.clip_range", "1.6e-3"]  # 1e-4 of 16,384 dimensions, in the units of 1,024
GROUP = ["--advantage.name", "group"]
SINGLE = ["--trainer.prompts_per_iteration", "32", "--trainer.samples_per_prompt", "1"]
TWICE = ["--trainer.epochs", "2"]
PRDP = ["--objective.name", "prdp", *CLIP, *TWICE]
"""Twice DDPO's updates a rollout: the PRDP paper has 10 at small scale, where DDPO has 4."""
RWR = [
    "--objective.name",
    "rwr",
    "--objective.standardize",
    "true",
    "--objective.per_prompt",
    "false",
]
OPEN = ["--objective.clip_range", "1e9"]
PASSES = ["--trainer.epochs", "4", "--trainer.iterations", "15"]

ARMS = {
    "ddpo": CLIP,
    "ddpo_sf": ["--objective.name", "ddpo_sf", "--trainer.minibatches", "1"],
    "rwr": [*RWR, "--objective.beta", "2"],
    "rwr_sparse": [*RWR, "--objective.percentile", "0.9"],
    "rwr_uniform": [*RWR, "--objective.beta", "0"],
    "prdp": PRDP,
    "ddpo_group": [*CLIP, *GROUP],
    "ddpo_per_prompt": [
        *CLIP,
        *SINGLE,
        "--advantage.name",
        "per_prompt",
        "--advantage.min_count",
        "2",
    ],
    "grpo": ["--objective.name", "grpo", *CLIP, *GROUP, "--advantage.std", "global"],
    "prdp_beta_high": [*PRDP, "--objective.beta", "30"],
    "prdp_beta_middle": [*PRDP, "--objective.beta", "3"],
    "ddpo_passes": [*CLIP, *PASSES],
    "ddpo_passes_open": [*OPEN, *PASSES],
    "prdp_passes": [*PRDP, *PASSES],
    "prdp_passes_open": [*PRDP, *OPEN, *PASSES],
    "ddpo_unguided": [*CLIP, "--objective.guidance_scale", "1"],
    "p3o": ["--objective.name", "p3o", *CLIP, *TWICE, "--objective.kl_coef", "3"],
}
"""Arm -> its flags, over COMMON and the task's."""


@dataclass(frozen=True)
class Arm:
    """One run: an arm on a task at a seed."""

    task: str
    arm: str
    seed: int
    lr: float

    @property
    def name(self) -> str:
        """Of its file, without the ending."""
        suffix = f"lr{self.lr:g}" if self.seed == TUNING_SEED else str(self.seed)
        return f"{self.task}.{self.arm}.{suffix}"


def flags(run: Arm) -> list[str]:
    """Of `ddpo train`; later ones override earlier ones."""
    last = ["--trainer.lr", str(run.lr), "--seed", str(run.seed)]
    return [*COMMON, *TASKS[run.task], *ARMS[run.arm], *last]


def planned(task: str, arm: str, seed: int) -> Arm:
    """The run of the study, at the learning rate that was chosen for the arm's family."""
    return Arm(task, arm, seed, lr_of(arm))


def lr_of(arm: str) -> float:
    family = FAMILY.get(arm) or max((name for name in TUNED if arm.startswith(name)), key=len)
    return TUNED[family]


TUNING = [Arm("compress", family, TUNING_SEED, lr) for family in TUNED for lr in RATES]
