"""Every objective that is a function of log-probabilities, on every family: one gradient, whatever
the chunks."""

import inspect
from functools import cache
from typing import Any

import families
import helpers
import pytest
from families import FAMILIES

from ddpo import objectives, plugins, samplers
from ddpo.rollout.sample import Sampler
from ddpo.rollout.trajectory import Trajectory

DENSITIES = [
    name
    for name in plugins.names("objectives")
    if "logp" in inspect.signature(plugins.load("objectives", name)).parameters  # pyright: ignore
]


@cache
def rolled(family: str) -> tuple[Any, Sampler, Trajectory]:
    """Six images in groups of two, by weights that have moved from the reference."""
    policy = families.policy(family, moved=0.05)
    name = "flow_sde" if policy.schedule.kind == "rectified-flow" else "ddim"
    sampler = Sampler(samplers.build(name, policy.schedule, 3), 2.0, 6)
    trajectory, _ = helpers.rolled(policy, sampler, 6, reference=True)
    helpers.move(policy, 1e-4)  # no objective is at its extreme
    return policy, sampler, trajectory


def test_there_are_several() -> None:
    assert {"ddpo", "grpo", "dpok", "prdp", "p3o"} <= set(DENSITIES)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", DENSITIES)
def test_every_objective_on_every_family(name: str, family: str) -> None:
    policy, sampler, trajectory = rolled(family)
    # in the middle of the trust region: at its edge, rounding decides which pairs are clipped
    options = inspect.signature(plugins.load("objectives", name)).parameters  # pyright: ignore
    objective = objectives.build(name, **({"clip_range": 1.0} if "clip_range" in options else {}))
    gradients = [
        helpers.gradient(
            helpers.work_on(policy, trajectory, sampler, objective, micro_batch), range(6)
        )
        for micro_batch in (3, 16)
    ]
    assert gradients[0].isfinite().all() and gradients[0].norm() > 0
    assert helpers.difference(gradients[1], gradients[0]) < 1e-4
