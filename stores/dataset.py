"""Shuffled, resumable, rank-aware batches for a REPA trainer, prefetched while the model trains.

store = open_store("imagenet256")
dataset = AlignmentDataset(store, latents="sd-vae-ft-mse", encoders=["dinov2-vit-b"], batch_size=256)
for batch in dataset: ...
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from ..errors import ConfigError, StoreError
from .buffers import BufferPool, shared_tensor
from .layout import features_group, latents_group
from .order import epoch_flips, epoch_order
from .reading_process import ReadingProcess
from .store import Store


class Batch(NamedTuple):
    """One rank's part of a global batch, with the store's dtypes: B samples. Lists have one entry per encoder."""

    indices: npt.NDArray[np.int64]  # [B]
    labels: torch.Tensor  # [B] int64
    moments: torch.Tensor  # [B, 2C, h, w]: posterior mean and std, unscaled
    patch_tokens: list[torch.Tensor]  # [B, N, D] float16, or codes as the group's codec stores them
    token_scales: list[torch.Tensor | None]  # [B, N] float16, if requested and the codec has scales
    cls_tokens: list[torch.Tensor | None]  # [B, D] float16, if requested and the encoder has class tokens

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """Return the batch with every tensor on `device`. `indices` stay on the host.

        Args:
            device: target of the copies.
            non_blocking: do not wait for copies from page-locked memory.
        """

        def move(tensor: torch.Tensor | None) -> Any:
            return None if tensor is None else tensor.to(device, non_blocking=non_blocking)

        return Batch(
            indices=self.indices,
            labels=move(self.labels),
            moments=move(self.moments),
            patch_tokens=[move(tokens) for tokens in self.patch_tokens],
            token_scales=[move(scales) for scales in self.token_scales],
            cls_tokens=[move(token) for token in self.cls_tokens],
        )

    def tensors(self) -> list[torch.Tensor]:
        """Return all tensors of the batch."""
        lists = (self.patch_tokens, self.token_scales, self.cls_tokens)
        return [self.labels, self.moments, *(tensor for found in lists for tensor in found if tensor is not None)]


class AlignmentDataset:
    """Batches from a store. Step s of a run holds the same samples for any number of ranks.

    Args:
        store: an open store; its groups must be complete.
        latents: name of the VAE.
        encoders: names of the encoders, in the order in which tokens are returned. May be empty.
        batch_size: samples per global batch, over all ranks.
        seed: seed of the order and of the flips.
        rank: the part of every global batch that this process reads.
        world_size: number of ranks.
        window: shuffle among this many shards at a time instead of all samples (`order.epoch_order`).
        token_scales: read the scales of quantized tokens, which a plain cosine does not need.
        cls_tokens: read class tokens.
        flip: take half of the samples, drawn again in every epoch, from the flipped views.
        alignment_steps: from this step on, do not read patch tokens. None: always read them.
        direct: bypass the page cache. None: if the groups are larger than this machine's memory allows.
        process: read in a separate process, for training loops that keep Python itself busy (Linux).
        prefetch: number of batches to read ahead.

    Raises:
        ConfigError: the batch size is not divisible by the number of ranks, or is larger than the store.
        StoreError: a group is missing or incomplete, or has no flipped views although `flip` is set.
    """

    def __init__(
        self,
        store: Store,
        *,
        latents: str,
        encoders: Sequence[str] = (),
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        window: int | None = None,
        token_scales: bool = False,
        cls_tokens: bool = False,
        flip: bool = False,
        alignment_steps: int | None = None,
        direct: bool | None = None,
        process: bool = False,
        prefetch: int = 4,
    ) -> None:
        self.store, self.seed, self.window, self.prefetch = store, seed, window, prefetch
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        self.flip, self.alignment_steps = flip, alignment_steps
        self.latents = latents_group(latents)
        self.features = [features_group(encoder) for encoder in encoders]
        self._wanted = ["tokens", *["token_scale"] * token_scales, *["cls_token"] * cls_tokens]
        self.indices = store.valid_indices([self.latents, *self.features])
        if flip:
            self._require_flips()
        if batch_size % world_size:
            raise ConfigError(f"batch size {batch_size} is not divisible by the number of ranks ({world_size})")
        if batch_size > len(self.indices):
            raise ConfigError(
                f"batch size {batch_size} is larger than the {len(self.indices)} samples of {store.location}: "
                "lower --batch-size"
            )
        self.direct = store.outgrows_memory([self.latents, *self.features]) if direct is None else direct
        self._pool = BufferPool(pin_memory=torch.cuda.is_available(), shared=process)
        self._process = ReadingProcess(store) if process else None
        self._epoch = 0
        self._ordered: tuple[int, npt.NDArray[np.int64]] | None = None
        self._flips: tuple[int, npt.NDArray[np.bool_]] | None = None

    def _require_flips(self) -> None:
        for name in (self.latents, *self.features):
            if not self.store.group(name).spec.has_flips:
                raise StoreError(
                    f"{self.store.location}: {name} has no flipped views: create a store with 'repa-pipe encode --flip'"
                )

    @property
    def steps_per_epoch(self) -> int:
        """Global batches per epoch. The incomplete last one is omitted, as in the published trainer."""
        return len(self.indices) // self.batch_size

    def indices_of_step(self, step: int) -> npt.NDArray[np.int64]:
        """Return the samples of step `step` that this rank reads, `[batch_size / world_size]`."""
        count = self.batch_size // self.world_size
        return self.global_indices_of_step(step)[self.rank * count : (self.rank + 1) * count]

    def global_indices_of_step(self, step: int) -> npt.NDArray[np.int64]:
        """Return the samples of step `step` over all ranks, `[batch_size]`."""
        epoch, position = divmod(step, self.steps_per_epoch)
        start = position * self.batch_size
        return self._order(epoch)[start : start + self.batch_size]

    def flipped_of_step(self, step: int) -> npt.NDArray[np.bool_] | None:
        """Return which samples of `indices_of_step` are flipped, `[batch_size / world_size]`. None without `flip`."""
        if not self.flip:
            return None
        epoch = step // self.steps_per_epoch
        flips = self._flips
        if flips is None or flips[0] != epoch:
            flips = (epoch, epoch_flips(len(self.store), self.seed, epoch))
            self._flips = flips
        return flips[1][self.indices_of_step(step)]

    def _order(self, epoch: int) -> npt.NDArray[np.int64]:
        ordered = self._ordered
        if ordered is None or ordered[0] != epoch:
            shard_size = self.store.manifest.shard_size
            ordered = (epoch, epoch_order(self.indices, self.seed, epoch, shard_size, self.window))
            self._ordered = ordered
        return ordered[1]

    def read(
        self, indices: npt.NDArray[np.int64], tokens: bool = True, flipped: npt.NDArray[np.bool_] | None = None
    ) -> Batch:
        """Read a batch in the calling thread.

        Args:
            indices: samples of the batch, `[B]`.
            tokens: read patch tokens and their scales.
            flipped: `[B]`, samples to take from the flipped views.
        """
        wanted = self._wanted if tokens else [array for array in self._wanted if array == "cls_token"]
        features = self.features if wanted else []
        names = self._array_names(features, wanted)
        buffers = {name: self._take(name, len(indices)) for name in names}
        arrays = {name: buffer.numpy() for name, buffer in buffers.items()}
        if self._process is None:
            self.store.read(names, indices, out=arrays, direct=self.direct, flipped=flipped)
        else:
            out = {name: self._pool.shared_buffer(array) for name, array in arrays.items()}
            self._process.read(names, indices, out, self.direct, flipped)

        def tensors(array: str) -> list[Any]:
            return [buffers.get(f"{group}/{array}") for group in features]

        return Batch(
            indices=indices,
            labels=torch.from_numpy(self.store.labels[indices].astype(np.int64)),
            moments=buffers[f"{self.latents}/moments"],
            patch_tokens=tensors("tokens") if tokens else [],
            token_scales=tensors("token_scale") if tokens else [],
            cls_tokens=tensors("cls_token"),
        )

    def close(self) -> None:
        """End the reading process, if any. The store stays open."""
        if self._process is not None:
            self._process.close()

    def __getstate__(self) -> dict[str, Any]:
        """Pickle the dataset without its buffers; a DataLoader worker allocates its own."""
        if self._process is not None:
            raise ConfigError("a dataset with process=True cannot be pickled: omit process=True")
        return self.__dict__ | {"_pool": None}

    def _array_names(self, features: Sequence[str], wanted: Sequence[str]) -> list[str]:
        pairs = [(group, array) for group in features for array in wanted]
        existing = [f"{group}/{array}" for group, array in pairs if array in self.store.group(group).shard_indexes]
        return [f"{self.latents}/moments", *existing]

    def _take(self, name: str, count: int) -> torch.Tensor:
        group, array = name.rsplit("/", 1)
        layout = self.store.group(group).shard_indexes[array].layout
        shape = (count, *layout.spec.sample_shape)
        if torch.utils.data.get_worker_info() is not None:  # in a DataLoader worker
            return shared_tensor(shape, layout.dtype)
        return torch.from_numpy(self._pool.take(shape, layout.dtype))

    def batches(self, start_step: int = 0) -> Generator[Batch, None, None]:
        """Yield the batches of steps `start_step`, `start_step + 1`, … without end, prefetched by a thread."""
        ready: queue.Queue[Batch | BaseException] = queue.Queue(maxsize=self.prefetch)
        stop = threading.Event()

        def produce() -> None:
            step = start_step
            try:
                while not stop.is_set():
                    tokens = self.alignment_steps is None or step < self.alignment_steps
                    batch = self.read(self.indices_of_step(step), tokens, self.flipped_of_step(step))
                    _put(ready, batch, stop)
                    step += 1
            except BaseException as error:
                _put(ready, error, stop)

        thread = threading.Thread(target=produce, name="read-ahead", daemon=True)
        thread.start()
        try:
            while True:
                item = ready.get()
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            stop.set()
            thread.join()

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches of one epoch. The next iteration is the next epoch."""
        start, self._epoch = self._epoch * self.steps_per_epoch, self._epoch + 1
        with closing(self.batches(start)) as batches:
            yield from islice(batches, self.steps_per_epoch)

    def __len__(self) -> int:
        return self.steps_per_epoch


def _put(ready: queue.Queue[Batch | BaseException], item: Batch | BaseException, stop: threading.Event) -> None:
    while not stop.is_set():
        try:
            ready.put(item, timeout=0.1)
            return
        except queue.Full:
            continue
