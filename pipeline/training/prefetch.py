"""Prefetching to the device: the next batch is copied on a separate CUDA stream while the model uses this one."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing

import torch

from ...stores import AlignmentDataset, Batch


def prefetch_to_device(
    dataset: AlignmentDataset, device: torch.device, start_step: int, waiting: Callable[[], None] | None = None
) -> Generator[Batch, None, None]:
    """Yield the dataset's batches from step `start_step` on, on `device`. Close the generator after use.

    `waiting` is that of `AlignmentDataset.batches`.
    """
    with closing(dataset.batches(start_step, waiting)) as batches:
        if device.type != "cuda":
            yield from batches
            return
        stream = torch.cuda.Stream(device)
        following = _Copy(next(batches), device, stream)
        while True:
            copy, following = following, _Copy(next(batches), device, stream)
            torch.cuda.current_stream(device).wait_event(copy.done)
            yield copy.batch
            copy.done.synchronize()  # finished long ago; the pinned buffers may be reused from here on


class _Copy:
    """A batch that is being copied to the device."""

    def __init__(self, host: Batch, device: torch.device, stream: torch.cuda.Stream) -> None:
        self._host = host  # keeps the pinned buffers alive
        used_on = torch.cuda.current_stream(device)
        with torch.cuda.stream(stream):
            self.batch = host.to(device, non_blocking=True)
            for tensor in self.batch.tensors():
                tensor.record_stream(used_on)
            self.done = torch.cuda.Event()
            self.done.record(stream)
