"""Seconds of an iteration, from a few calls on this machine: `ddpo plan --calibrate`.

A small iteration of the same run is done twice, the first to warm up: one call's images, and every
step of theirs in an update. What it took, by phase, is scaled by the calls of the whole iteration.
"""

from math import ceil

from ddpo.building import build
from ddpo.config import Config
from ddpo.planning import plan as planning
from ddpo.planning.calls import calls
from ddpo.planning.plan import Plan

ROUNDS = 3
"""Small iterations that are timed; of each phase the quickest counts."""

WITH_GRADIENT = 2.1
"""A call with its backward pass, in calls without: by counted operations 2.0 to 2.3 with a LoRA.
Only where an iteration has another mixture of them than the small one does it matter."""


def seconds(settings: Config, processes: int = 1) -> dict[str, float]:
    """By phase: sampling with decoding, waiting for rewards, the update, all else; `iteration`.

    Each process has its share, and they are as fast as this one. Raises UserError for what a run
    would refuse, Stopped where one would end in its first iteration.
    """
    whole = planning.plan(settings, processes)
    small_settings = _small(settings, whole)
    small = planning.plan(small_settings)
    trainer = build.trainer(small_settings)
    rows = [trainer.iterate() for _ in range(1 + ROUNDS)][1:]
    took = {
        name: min(row[f"time/{name}"] for row in rows) for name in ("sample", "reward", "update")
    }
    other = min(row["time/total"] - sum(row[f"time/{name}"] for name in took) for row in rows)
    work, done = _work(whole), _work(small)
    chunks = work["sampling"] / processes / done["sampling"] if done["sampling"] else 1.0
    found = {
        "sampling": took["sample"] * chunks,
        "rewards": _waiting(took["reward"], took["sample"], chunks, trainer.policy.device.type),
        "update": took["update"] * _updates(work, done) / processes,
        "other": other,
    }
    return {**found, "iteration": sum(found.values())}


def _small(settings: Config, whole: Plan) -> Config:
    """Of as many prompts as fill one call of sampling, in one minibatch."""
    own = settings.trainer
    filling = ceil(int(settings.sampler.batch_size) / own.samples_per_prompt)
    sizes = {
        "prompts_per_iteration": min(own.prompts_per_iteration, filling),
        "minibatches": 1,
        "while_sampling": whole.collects,
        "iterations": 1 + ROUNDS,
    }
    return settings.model_copy(update={"trainer": own.model_copy(update=sizes)})


def _work(plan: Plan) -> dict[str, float]:
    """Calls of sampling, and those of updates, weighed by what they take."""
    found = {"sampling": 0.0, "updates": 0.0, "steps": float(plan.sizes.updates)}
    for call, count in calls(plan, 1).items():
        weight = count * call.rows * (WITH_GRADIENT if call.grad else 1.0)
        if call.phase in ("sampling", "scoring") or (
            call.phase == "reference" and plan.objective.scores_steps
        ):
            found["sampling"] += weight
        elif call.phase not in ("kl_ref", "ratios", "pictures", "evaluation", "kl to the base"):
            found["updates"] += weight
    return found


def _updates(work: dict[str, float], done: dict[str, float]) -> float:
    """How many small updates a whole one is; by optimizer steps where none scores a pair."""
    kind = "updates" if done["updates"] else "steps"
    return work[kind] / done[kind]


def _waiting(reward: float, sample: float, chunks: float, device: str) -> float:
    """For the rewards of all chunks. On a GPU they are scored while the next ones are sampled."""
    if device != "cuda":
        return reward * chunks
    return max(reward, reward * chunks - sample * (chunks - 1))
