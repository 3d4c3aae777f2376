"""Floating-point operations of an iteration: those of its calls, counted without making them.

Matrix products, convolutions and attention, 2 for a multiply-add; element-wise work, text encoders
(whose embeddings are kept) and the models of rewards are not counted.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from ddpo.planning import imaginary, memory
from ddpo.planning.calls import calls
from ddpo.planning.plan import Plan
from ddpo.prompts import Prompt

aten = torch.ops.aten


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(grad, query, key, value)


ON_CPU: dict[Any, Any] = {
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
"""The fused attention of CPUs, which torch's counter does not know."""


def counted(compute: Callable[[], object]) -> int:
    """Of what `compute` does, on tensors with content or without."""
    with FlopCounterMode(display=False, custom_mapping=ON_CPU) as counter:
        compute()
    return counter.get_total_flops()


def of_a_row(plan: Plan, guided: bool, grad: bool) -> int:
    """Of one image or pair of a call; with `grad` of the backward pass, too."""
    policy, scale = plan.policy, 2.0 if guided else 1.0

    def call(condition: Any) -> None:
        timesteps = torch.zeros(1, dtype=torch.long)
        output = policy.predict(memory.states(plan, 1), timesteps, condition, scale)
        if grad:
            output.sum().backward()

    with imaginary.tensors, torch.set_grad_enabled(grad):
        # texts are encoded once, which is not counted
        condition = policy.condition([Prompt("fox")], "" if guided else None)
        return counted(lambda: call(condition))


def of_decoding(plan: Plan) -> int:
    """Of one image."""
    with imaginary.tensors, torch.no_grad():
        return counted(lambda: plan.policy.decode(memory.states(plan, 1)))


def of_iteration(plan: Plan, iteration: int = 1) -> Counter[str]:
    """By phase, of all processes: those of `calls`, and `decoding`. Padding counts."""
    rows, found = dict[tuple[bool, bool], int](), Counter[str]()
    images = 0
    for call, count in calls(plan, iteration).items():
        kind = call.guided, call.grad
        if kind not in rows:
            rows[kind] = of_a_row(plan, *kind)
        found[call.phase] += count * call.rows * rows[kind]
        images += count * call.rows * (call.phase == "sampling")
    found["decoding"] = images // plan.steps[0] * of_decoding(plan) if images else 0
    return +found
