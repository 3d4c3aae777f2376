"""Compiled blocks: the same pictures, ratios of 1 and the same gradient.

The graphs are captured and differentiated as for any compiler and then run as they are
(`aot_eager`), which takes no C++ compiler and a few seconds instead of a minute.
"""

from pathlib import Path
from typing import Any

import helpers
import pytest
import torch

from ddpo import objectives
from ddpo.building import build
from ddpo.errors import UserError
from ddpo.models._shared import memory
from ddpo.prompts import Prompt
from ddpo.training.gates import first_pass_deviation


def measured(compiled: bool) -> dict[str, Any]:
    policy = helpers.policy(moved=0.2)
    if compiled:
        policy.compile()
    sampler = helpers.sampler(policy, steps=2)
    trajectory, _ = helpers.rolled(policy, sampler, 4)
    work = helpers.work_on(policy, trajectory, sampler, objectives.build("ddpo"), 4)
    deviation = first_pass_deviation(work)
    gradient = helpers.gradient(work, [0, 1, 2, 3])
    condition = policy.condition([Prompt("a fox")] * 4)
    with torch.no_grad(), policy.weights("base"):
        base = policy.predict(trajectory.latents[:, 0], torch.full((4,), 500), condition, 1.0)
    return {"x": trajectory.latents, "deviation": deviation, "gradient": gradient, "base": base}


def test_compiled_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "BACKEND", "aot_eager")
    torch._dynamo.utils.counters.clear()
    compiled = measured(True)
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] >= 3 and not counters["graph_break"]
    plain = measured(False)
    assert compiled["deviation"] <= 1e-6
    for name in ("x", "gradient", "base"):
        assert helpers.difference(compiled[name], plain[name]) < 1e-5, name


def test_it_is_obeyed_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = helpers.settings(tmp_path, model__compile=True, trainer__minibatches=1)
    network: Any = build.policy(asked).network
    blocks = [m for m in network.modules() if type(m).__name__ in network._repeated_blocks]
    assert blocks and all(block._compiled_call_impl for block in blocks)
    asked.trainer.while_sampling = True
    with pytest.raises(UserError, match=r"while_sampling: true: model\.compile leaves no layers"):
        build.trainer(asked)
    monkeypatch.setattr(type(network), "_repeated_blocks", [])
    with pytest.raises(UserError, match=r"model\.compile: UNet2DConditionModel has no blocks"):
        build.policy(asked)
