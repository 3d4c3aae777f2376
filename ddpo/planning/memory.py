"""What a computation needs in memory, counted without running it: its tensors have sizes and no content."""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

imaginary = FakeTensorMode(allow_non_fake_inputs=True)
"""Within it, operations give tensors without content, those of real tensors too."""


class Alive(TorchDispatchMode):
    """Within it, counts the bytes of the tensors that operations make and that are still alive: `peak`."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._now = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in () if func.is_view else tree_iter(made):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self._now += self._sizes[key]
            self.peak = max(self.peak, self._now)
            weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self._now -= self._sizes.pop(key)


def peak_bytes(compute: Callable[[], object]) -> int:
    """The most that the tensors made by `compute` take at one time; those made before it are not counted.

    Exact for what torch allocates tensor by tensor; the scratch space inside a kernel is not in it.
    """
    with imaginary, Alive() as alive:
        compute()
    return alive.peak
