"""A GPU that is not there: what the host would wait for, counted on tensors without contents."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

READ, SEARCH, PIN = "aten._local_scalar_dense.default", "aten.nonzero.default", "aten._pin_memory"
COPIES = {"aten._to_copy.default": 0, "aten.copy_.default": 1}
"""Copy -> the place of its source among the arguments."""


class Waits(TorchDispatchMode):
    """Counts operations after which the host waits: values read, copies to or from the device from
    ordinary memory, results whose shape depends on contents."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = str(func), kwargs or {}
        if name.startswith(PIN):
            return args[0]
        if name == READ:
            self.counts[name] += args[0].device.type == "cuda"
            return 1.0 if args[0].is_floating_point() else 1
        if name == SEARCH and args[0].device.type == "cuda":
            self.counts[name] += 1
            return torch.zeros(args[0].numel(), args[0].dim(), dtype=torch.long, device="cuda")
        if name.startswith("aten.index") and args[0].device.type == "cuda":
            places = args[1] if isinstance(args[1], list) else []
            self.counts["cpu to cuda"] += any(
                place is not None and place.device.type == "cpu" for place in places
            )
        made = func(*args, **kwargs)
        if name in COPIES:
            source = args[COPIES[name]]
            goes_on = kwargs.get("non_blocking") or (name == "aten.copy_.default" and args[2:3])
            if source.device.type != made.device.type and not goes_on:
                self.counts[f"{source.device.type} to {made.device.type}"] += 1
        return made


def possible() -> bool:
    """Whether this torch moves a tensor with contents to a device that is not there.

    2.8 asks for its driver.
    """
    tensor = torch.zeros(1)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            tensor.to("cuda")
    except RuntimeError:
        return False
    return True


@contextmanager
def imaginary_gpu() -> Iterator[Counter[str]]:
    """Within it, tensors on the device "cuda" have sizes and no contents.

    Values that are read are 1.
    """

    def tolist(tensor: Tensor) -> Any:
        """All of it is one read."""
        waits.counts["tolist"] += tensor.device.type == "cuda"
        values: Any = 1.0 if tensor.is_floating_point() else 1
        for length in reversed(tensor.shape):
            values = [values] * length
        return values

    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with fake, Waits() as waits, pytest.MonkeyPatch.context() as m:
        m.setattr(FakeTensor, "tolist", tolist)
        m.setattr(Tensor, "backward", lambda tensor: None)  # it asks for a driver
        yield waits.counts


def there(policy: Any) -> None:
    """Its networks, on the device that is not there."""
    policy.device = policy._resident.device = torch.device("cuda")
    policy.__dict__["schedule"] = policy.schedule.to(policy.device)
    for network in policy.modules:
        for module in network.modules():
            for tensors in (module._parameters, module._buffers):
                for name, tensor in tensors.items():
                    if tensor is None:
                        continue
                    moved = torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")
                    if isinstance(tensor, nn.Parameter):
                        moved = nn.Parameter(moved, requires_grad=tensor.requires_grad)
                    tensors[name] = moved
