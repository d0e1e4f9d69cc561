"""Shuffled, resumable, rank-aware batches for a REPA trainer, prefetched while the model trains.

dataset = AlignmentDataset("imagenet256", latents="sd-vae-ft-mse", encoders=["dinov2-vit-b"], batch_size=256)
for batch in dataset: ...
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from ..errors import ConfigError, SampleIndexError
from .batch import Batch
from .buffers import BufferPool
from .indexing import Indices, as_names, as_rows, as_single
from .layout import FIXED, MOMENTS, features_group, latents_group
from .lent_buffers import worker_buffers
from .memory import shards_in_memory
from .order import ARGSORT, ORDERS, OrderName, default_order
from .read_ahead import read_ahead
from .reading_process import ReadingProcess
from .store import Selection, Store, open_store
from .trainable import trainable_rows

if TYPE_CHECKING:
    Base = torch.utils.data.IterableDataset[Batch]
else:
    Base = torch.utils.data.IterableDataset


class AlignmentDataset(Base):
    """Batches from a store. Step s of a run holds the same samples for any number of ranks.

    Iterating yields the batches of one epoch; the next iteration is the next epoch. An epoch is shuffled again every
    time, and omits the samples that do not fill a batch. `dataset[s]` is the batch of step s, and
    `DataLoader(dataset, batch_size=None)` yields the same batches as the dataset itself. `state_dict` and
    `load_state_dict` resume in the middle of an epoch, also within torchdata's StatefulDataLoader.

    Args:
        store: an open store, its location, or a selection of its samples (`Store.select`). The groups that are read
            must be complete.
        latents: name of the VAE. None: the only one in the store.
        token_latents: name of an encoder whose patch tokens are the latents (RAE), instead of a VAE's. It may be one of
            `encoders` as well; the tokens are then read once.
        encoders: names of the encoders, in the order in which tokens are returned; a single one may be passed as a
            string. May be empty.
        batch_size: samples per global batch, over all ranks.
        seed: seed of the order and of the flips.
        rank: the part of every global batch that this process reads.
        world_size: number of ranks.
        window: shuffle among this many shards at a time instead of all samples (`order.epoch_order`).
        token_scales: read the scales of quantized tokens, which a plain cosine does not need.
        cls_tokens: read class tokens; "aligned" for as many steps as patch tokens.
        flip: take half of the samples, drawn again in every epoch, from the flipped views.
        alignment_steps: from this step on, do not read patch tokens. None: always read them.
        direct: bypass the page cache. None: for the shards that do not fit into memory (`memory.shards_in_memory`).
        process: read in a separate process, for training loops that keep Python itself busy (Linux).
        prefetch: number of batches to keep ready, besides the two that are being read.
        order: how samples are ordered, `argsort` or `permutation` (`order.default_order`), to continue what began with
            it. None: argsort in stores of fewer than 2^24 samples, or the order of the state that is loaded.

    Attributes:
        rows: the samples that batches are drawn from: those of the store or the selection, without quarantined ones.

    Raises:
        ConfigError: the seed is not from 0 to 2^63 - 1, `prefetch` is below 1, the batch size is not divisible by the
            number of ranks, or is larger than the store, or `latents` is not given and the store does not have exactly
            one VAE.
        StoreError: a group is missing or incomplete, or has no flipped views although `flip` is set.
    """

    def __init__(
        self,
        store: Store | Selection | str | Path,
        *,
        latents: str | None = None,
        encoders: str | Sequence[str] = (),
        batch_size: int = 256,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        window: int | None = None,
        token_scales: bool = False,
        cls_tokens: bool | Literal["aligned"] = False,
        flip: bool = False,
        alignment_steps: int | None = None,
        direct: bool | None = None,
        process: bool = False,
        prefetch: int = 4,
        order: OrderName | None = None,
        token_latents: str | None = None,
    ) -> None:
        if not 0 <= seed < 1 << 63:
            raise ConfigError(f"seed is {seed}: expected 0 to 2^63 - 1")
        if latents and token_latents:
            raise ConfigError(f"latents is {latents!r} and token_latents {token_latents!r}: expected only one of them")
        if prefetch < 1:
            raise ConfigError(f"prefetch is {prefetch}: expected at least 1 batch")
        self._owns_store = isinstance(store, str | Path)
        chosen = open_store(store) if isinstance(store, str | Path) else store
        self.store = chosen.store if isinstance(chosen, Selection) else chosen
        self.seed, self.window, self.prefetch = seed, window, prefetch
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        self.flip, self.alignment_steps = flip, alignment_steps
        self._latents_arrays = ["tokens", "token_scale"]
        if token_latents is not None:
            self.latents = features_group(token_latents)
        else:
            self.latents = latents_group(self.store.vae_name(latents) if latents else _only_vae(self.store))
            self._latents_arrays = [self.store.group(self.latents).latents_array]
        self.features = [features_group(encoder) for encoder in as_names(encoders)]
        self._wanted = ["tokens", *["token_scale"] * token_scales, *["cls_token"] * bool(cls_tokens)]
        self._wanted_later = ["cls_token"] if cls_tokens is True else []  # once alignment has ended
        groups = list(dict.fromkeys([self.latents, *self.features]))
        self.rows = trainable_rows(chosen, groups, batch_size=batch_size, world_size=world_size, flip=flip)
        self._chosen_order = order
        self.use_order(order or default_order(len(self.store)))
        self._page_cache = self._past_the_page_cache(groups) if direct is None else {"direct": direct}
        self._pool = BufferPool(pin_memory=torch.cuda.is_available(), shared=process)
        self._process = ReadingProcess(self.store) if process else None
        self._next_start = 0  # first step of the next iteration
        self._position = 0  # step after the last batch that was yielded

    def __repr__(self) -> str:
        left_out = len(self.rows) - self.steps_per_epoch * self.batch_size
        return (
            f"<AlignmentDataset of {self.store.location}: {', '.join([self.latents, *self.features])}; "
            f"{self.steps_per_epoch} batches of {self.batch_size} per epoch ({left_out} of {len(self.rows)} samples "
            f"left out of each), seed {self.seed}, rank {self.rank} of {self.world_size}>"
        )

    @cached_property
    def indices(self) -> npt.NDArray[np.int64]:
        """`rows` as an array, ascending int64 `[n]`."""
        return np.asarray(self.rows)

    def use_order(self, order: OrderName) -> None:
        """Order the samples as runs do that began with `order`. Steps are counted from the same position."""
        if order not in ORDERS:
            raise ConfigError(f"order is {order!r}: expected {' or '.join(ORDERS)}")
        self.order = order
        self._order = ORDERS[order](self.rows, self.seed, self.store.manifest.shard_size, self.window)

    @property
    def steps_per_epoch(self) -> int:
        """Global batches per epoch. The incomplete last one is omitted, as in the published trainer."""
        return len(self.rows) // self.batch_size

    def indices_of_step(self, step: int) -> npt.NDArray[np.int64]:
        """Return the samples of step `step` that this rank reads, `[batch_size / world_size]`."""
        count = self.batch_size // self.world_size
        return self._samples(step, self.rank * count, (self.rank + 1) * count)

    def global_indices_of_step(self, step: int) -> npt.NDArray[np.int64]:
        """Return the samples of step `step` over all ranks, `[batch_size]`."""
        return self._samples(step, 0, self.batch_size)

    def _samples(self, step: int, start: int, stop: int) -> npt.NDArray[np.int64]:
        epoch, position = divmod(step, self.steps_per_epoch)
        first = position * self.batch_size
        return self._order.samples(epoch, first + start, first + stop)

    def flipped_of_step(self, step: int) -> npt.NDArray[np.bool_] | None:
        """Return which samples of `indices_of_step` are flipped, `[batch_size / world_size]`. None without `flip`."""
        if not self.flip:
            return None
        return self._order.flipped(step // self.steps_per_epoch, self.indices_of_step(step))

    def __getitem__(self, step: int) -> Batch:
        """Return this rank's batch of a step, counted from 0 over all epochs.

        Raises:
            SampleIndexError: this is not a step.
        """
        single = as_single(step)
        if single is None or single < 0:
            raise SampleIndexError(
                f"dataset[{step!r}]: expected a step, an integer from 0 on; the {self.steps_per_epoch} steps of an "
                "epoch are followed by those of the next. For samples, use MapStyleDataset(dataset) or the store"
            )
        return self.read(*self._plan(single))

    def _plan(self, step: int) -> tuple[npt.NDArray[np.int64], bool, npt.NDArray[np.bool_] | None]:
        """Return what this rank reads in a step: the arguments of `read`."""
        return self.indices_of_step(step), self._has_tokens(step), self.flipped_of_step(step)

    def _has_tokens(self, step: int) -> bool:
        return self.alignment_steps is None or step < self.alignment_steps

    def _of_features(self, tokens: bool) -> tuple[list[str], list[str]]:
        """Return the groups and the arrays of features to read, with or without tokens."""
        wanted = self._wanted if tokens else self._wanted_later
        return self.features if wanted else [], wanted

    def read(self, indices: Indices, tokens: bool = True, flipped: npt.NDArray[np.bool_] | None = None) -> Batch:
        """Read a batch in the calling thread.

        Args:
            indices: samples of the batch, as for `Store.read`.
            tokens: read patch tokens and their scales.
            flipped: `[B]`, samples to take from the flipped views.
        """
        rows = as_rows(indices, len(self.store))
        features, wanted = self._of_features(tokens)
        names = self._array_names(features, wanted)
        buffers = {name: self._take(name, len(rows)) for name in names}
        arrays = {name: buffer.numpy() for name, buffer in buffers.items()}
        if self._process is None:
            self.store.read(names, rows, out=arrays, flipped=flipped, **self._page_cache)
        else:
            out = {name: self._pool.shared_buffer(array) for name, array in arrays.items()}
            self._process.read(names, rows, out, flipped=flipped, **self._page_cache)

        def tensors(array: str) -> list[Any]:
            return [buffers.get(f"{group}/{array}") for group in features]

        def of_latents(array: str) -> torch.Tensor | None:
            return buffers.get(f"{self.latents}/{array}") if array in self._latents_arrays else None

        return Batch(
            indices=rows,
            labels=torch.from_numpy(self.store.labels_at(rows).astype(np.int64)),
            moments=of_latents(MOMENTS),
            patch_tokens=tensors("tokens") if tokens else [],
            token_scales=tensors("token_scale") if tokens else [],
            cls_tokens=tensors("cls_token"),
            latent_tokens=of_latents("tokens"),
            latent_scales=of_latents("token_scale"),
            fixed_latents=of_latents(FIXED),
        )

    def bytes_per_sample(self, step: int) -> int:
        """Return how many bytes of arrays a sample has in a batch of this step."""
        features, wanted = self._of_features(self._has_tokens(step))
        names = [name.rsplit("/", 1) for name in self._array_names(features, wanted)]
        return sum(self.store.group(group).shard_indexes[array].layout.spec.sample_bytes for group, array in names)

    def _past_the_page_cache(self, groups: Sequence[str]) -> dict[str, Any]:
        """Return the arguments of `Store.read` that decide which shards bypass the page cache."""
        sample_bytes = sum(self.store.group(name).spec.sample_bytes for name in groups)
        cached = shards_in_memory(self.rows, sample_bytes, self.store.manifest.shard_size)
        return {} if cached is None else {"direct": True, "cached_shards": cached}

    def close(self) -> None:
        """End the reading process, if any. Close the store if the dataset has opened it."""
        if self._process is not None:
            self._process.close()
        if self._owns_store:
            self.store.close()

    def __getstate__(self) -> dict[str, Any]:
        """Pickle the dataset without its buffers; a DataLoader worker allocates its own."""
        if self._process is not None:
            raise ConfigError("a dataset with process=True cannot be pickled: omit process=True")
        return self.__dict__ | {"_pool": None}

    def _array_names(self, features: Sequence[str], wanted: Sequence[str]) -> list[str]:
        pairs = [(self.latents, array) for array in self._latents_arrays]
        pairs += [(group, array) for group in features for array in wanted]
        existing = [f"{group}/{array}" for group, array in pairs if array in self.store.group(group).shard_indexes]
        return list(dict.fromkeys(existing))

    def _take(self, name: str, count: int) -> torch.Tensor:
        group, array = name.rsplit("/", 1)
        layout = self.store.group(group).shard_indexes[array].layout
        shape = (count, *layout.spec.sample_shape)
        if torch.utils.data.get_worker_info() is not None:  # in a DataLoader worker
            return worker_buffers().take(shape, layout.dtype)
        return torch.from_numpy(self._pool.take(shape, layout.dtype))

    def batches(
        self, start_step: int | None = None, waiting: Callable[[], None] | None = None
    ) -> Generator[Batch, None, None]:
        """Yield the batches of steps `start_step`, `start_step + 1`, … without end, prefetched by a thread.

        Args:
            start_step: the first step. None: the step after the last batch that was yielded, or the step of the state
                that was loaded; 0 for a new dataset.
            waiting: called every 0.2 s while the next batch is not ready. What it raises ends the generator.

        Raises:
            StoreError: a batch cannot be read.
        """
        first = self._position if start_step is None else start_step
        return self._batches(range(first, sys.maxsize), waiting)

    def _batches(self, steps: range, waiting: Callable[[], None] | None = None) -> Generator[Batch, None, None]:
        with closing(read_ahead(self._plan, self.read, steps, self.prefetch, waiting)) as batches:
            for step, batch in zip(steps, batches, strict=True):
                self._position = step + 1
                yield batch

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches of one epoch, or of its rest after `load_state_dict`. The next iteration is the next epoch.

        Raises:
            ConfigError: a worker of a DataLoader iterates over the dataset. It would not know the epoch.
        """
        if torch.utils.data.get_worker_info() is not None:
            raise ConfigError(
                "an AlignmentDataset reads ahead by itself and cannot be divided among workers: use "
                "DataLoader(dataset, batch_size=None, num_workers=0) or the dataset alone (process=True reads in a "
                "separate process). To read samples in workers, use "
                "DataLoader(MapStyleDataset(dataset), batch_size=…, shuffle=True, num_workers=…)"
            )
        return self._epoch()

    def _epoch(self) -> Generator[Batch, None, None]:
        start = self._next_start
        stop = self._next_start = (start // self.steps_per_epoch + 1) * self.steps_per_epoch
        with closing(self._batches(range(start, stop))) as batches:
            yield from batches

    def __len__(self) -> int:
        return self.steps_per_epoch

    def state_dict(self) -> dict[str, Any]:
        """Return the position after the last batch that was yielded, and what the order of samples depends on."""
        return {"step": self._position, **self._order_settings()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a position: the next iteration yields the rest of its epoch. The number of ranks may differ.

        Args:
            state: the result of `state_dict`.

        Raises:
            ConfigError: the dataset would yield other batches than the one that returned the state.
        """
        recorded = {"order": ARGSORT, **state}  # states of earlier versions record none
        if self._chosen_order is None and recorded["order"] in ORDERS:
            self.use_order(recorded["order"])
        different = [
            f"{name}: recorded {recorded.get(name)!r}, found {found!r}"
            for name, found in self._order_settings().items()
            if recorded.get(name) != found
        ]
        if different or not isinstance(state.get("step"), int):
            raise ConfigError(
                f"the state belongs to a dataset with other batches ({'; '.join(different) or 'it has no step'}): "
                "create the dataset with the same arguments to resume"
            )
        self._next_start = self._position = state["step"]

    def _order_settings(self) -> dict[str, Any]:
        return {
            "images": self.store.manifest.index_digest,
            "samples": self._digest,
            "batch_size": self.batch_size,
            "seed": self.seed,
            "window": self.window,
            "flip": self.flip,
            "order": self.order,
        }

    @cached_property
    def _digest(self) -> str:
        return self.rows.digest


def _only_vae(store: Store) -> str:
    if len(store.vaes) != 1:
        found = f"has {', '.join(store.vaes)}: pass one of them" if store.vaes else "has no latents: encode some first"
        raise ConfigError(f"latents is not given and {store.location} {found}")
    return store.vaes[0]
