"""Batches on the device: the next one is copied on a stream of its own while the model works on this one."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing

import torch

from ...stores import AlignmentDataset, Batch


def prefetch_to_device(
    dataset: AlignmentDataset, device: torch.device, start_step: int
) -> Generator[Batch, None, None]:
    """The dataset's batches from `start_step` on, on `device`; a generator to be closed."""
    with closing(dataset.batches(start_step)) as batches:
        if device.type != "cuda":
            yield from batches
            return
        stream = torch.cuda.Stream(device)
        following = _Copy(next(batches), device, stream)
        while True:
            copy, following = following, _Copy(next(batches), device, stream)
            torch.cuda.current_stream(device).wait_event(copy.done)
            yield copy.batch
            copy.done.synchronize()  # long past; only then may the page-locked buffers be used again


class _Copy:
    """A batch on its way to the device."""

    def __init__(self, host: Batch, device: torch.device, stream: torch.cuda.Stream) -> None:
        self._host = host
        self._device = device
        self._used_on = torch.cuda.current_stream(device)
        with torch.cuda.stream(stream):
            self.batch = Batch(
                indices=host.indices,
                labels=self._move(host.labels),
                moments=self._move(host.moments),
                patch_tokens=[self._move(tokens) for tokens in host.patch_tokens],
                token_scales=[None if scale is None else self._move(scale) for scale in host.token_scales],
                cls_tokens=[None if token is None else self._move(token) for token in host.cls_tokens],
            )
            self.done = torch.cuda.Event()
            self.done.record(stream)

    def _move(self, value: torch.Tensor) -> torch.Tensor:
        moved = value.to(self._device, non_blocking=True)
        moved.record_stream(self._used_on)
        return moved
