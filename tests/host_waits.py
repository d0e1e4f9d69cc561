"""Counts the calls for which a host would wait for its accelerator, on a machine that has none."""

from __future__ import annotations

from contextlib import ExitStack

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Not `numpy`: the tensors of an accelerator do not have it.
READS = {"item", "tolist", "cpu", "__bool__", "__float__", "__int__", "__index__", "nonzero"}


class HostWaits(ExitStack):
    """Within the block, in this thread: names of calls that read values, or copy between the CPU and a device.

    A copy of a tensor from the CPU to the meta device, which can stand for an accelerator, is in `copies`. The meta
    device has no values, so code that reads one there fails.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[str] = []
        self.copies: list[str] = []

    def __enter__(self) -> HostWaits:
        super().__enter__()
        self.enter_context(_Functions(self))
        self.enter_context(_Operations(self))
        return self


class _Functions(TorchFunctionMode):
    """Sees calls in Python, also those that end in C++, as `tolist` does."""

    def __init__(self, waits: HostWaits) -> None:
        super().__init__()
        self._waits = waits

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__name__", "") in READS:
            self._waits.reads.append(func.__name__)
        return func(*args, **(kwargs or {}))


class _Operations(TorchDispatchMode):
    """Sees operations, also those that C++ calls."""

    def __init__(self, waits: HostWaits) -> None:
        super().__init__()
        self._waits = waits

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = str(func)
        if name.startswith("aten._local_scalar_dense"):
            self._waits.reads.append(name)
        if name.startswith(("aten._to_copy", "aten.copy_")):
            tensors = [leaf for leaf in tree_leaves((args, result)) if isinstance(leaf, torch.Tensor)]
            if len({tensor.device.type for tensor in tensors}) > 1:
                self._waits.copies.append(name)
        return result
