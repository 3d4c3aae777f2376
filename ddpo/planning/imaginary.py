"""Computations on tensors that have sizes and no content, and the bytes that they take."""

import gc
import weakref
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

tensors = FakeTensorMode(allow_non_fake_inputs=True)
"""Within it, operations give tensors without content, those of real tensors too."""


class Alive(TorchDispatchMode):
    """Within it, counts the bytes of the tensors that operations make.

    Those that are still alive are `now`, the most at one time is `peak`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = self.now = 0
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
            self.now += self._sizes[key]
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.now -= self._sizes.pop(key)


class Uncopied(TorchDispatchMode):
    """Within it, a copy of a large tensor has its size and dtype, and no content.

    Memory that nobody has written to takes none on most systems, but a copy would write to it.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        if func in COPIES and args[0].nbytes >= LARGE:
            return torch.empty_like(args[0], **{key: options[key] for key in options.keys() & KEPT})
        return func(*args, **options)


COPIES = {torch.ops.aten.clone.default, torch.ops.aten._to_copy.default}
KEPT = {"dtype", "device", "memory_format"}
LARGE = 2**20
"""Bytes; the tables of a noise schedule, whose content counts, are far smaller."""


def peak_bytes(compute: Callable[[], object]) -> int:
    """The most that the tensors made by `compute` take at one time.

    Tensors made before it are not counted.

    Exact for what torch allocates tensor by tensor; the scratch space inside a kernel is not in it.
    """
    with tensors, Alive() as alive:
        compute()
    return alive.peak


def kept_bytes(compute: Callable[[], object]) -> int:
    """What of the tensors made by `compute` is still alive when it has returned."""
    with tensors, Alive() as alive:
        compute()
        gc.collect()
    return alive.now


def imagine(modules: Iterable[nn.Module]) -> None:
    """Replaces the parameters and buffers, for good, by such tensors.

    Operations take real ones, too, but convert them anew each time: half of the time they need.
    """
    for part in (part for module in modules for part in module.modules()):
        for owned in (part._parameters, part._buffers):
            for name, tensor in owned.items():
                if tensor is not None:
                    owned[name] = cast(Any, tensors.from_tensor(tensor))
