"""Encodes one shard: reads, decodes and crops its images once, runs the models, writes and commits.

Encoding is a pure function of (source, config, shard). A second run writes the same bytes, so a retry is always safe.
The same class runs in this process and in Ray actors.
"""

from __future__ import annotations

import dataclasses
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt
import torch

from ...config import EncodeConfig
from ...errors import BadImageError, StoreError, WeightsError
from ...sources import Record, Source, decode_crop, open_source, records_of
from ...sources.decoder_limits import Budget
from ...sources.source import MAX_IMAGE_BYTES
from ...stores import Store, open_store
from ...stores.checksum import crc32c_bytes
from ...stores.layout import GroupSpec
from ...stores.manifest import Quarantined, read_commit
from ...stores.upload import store_exists
from ...stores.writer import ShardWriter
from .activity import IMAGES, MODELS, WRITING, Activity, ModelClock
from .batch_size import CPU_BATCH, fits_on_gpu, largest_batch
from .group_encoder import EncodedBatch, GroupEncoder
from .loading import load_group_encoders
from .work import ShardResult, ShardTask


@dataclass(frozen=True, slots=True)
class _Decoded:
    crop: npt.NDArray[np.uint8] | None
    checksum: int
    reason: str = ""


class StoppedError(Exception):
    """The run was stopped in the middle of a shard."""


def use_recorded_threads(config: EncodeConfig, groups: tuple[str, ...]) -> None:
    """Use the number of CPU threads recorded in the existing groups: the last bits of results depend on it.

    Runners call this, not ShardEncoder, since it changes the entire process.
    """
    if store_exists(config.store):
        with open_store(config.store) as store:
            for name in set(groups) & set(store.group_names()):
                torch.set_num_threads(store.group(name).fingerprint.get("threads", torch.get_num_threads()))


class ShardEncoder:
    """The models of `groups` on `device`, and the threads that feed them. Two shards may run at the same time."""

    def __init__(self, config: EncodeConfig, groups: tuple[str, ...], device: torch.device) -> None:
        self._config, self._device = config, device
        self._store: Store | None = None
        self._opening = threading.Lock()
        precision = config.precision or ("fp16" if device.type == "cuda" else "fp32")
        self._encoders = load_group_encoders(config, groups, device, precision)
        self._batch_size = config.batch_size or self._choose_batch_size(groups)
        self._source: Source = open_source(config.source, config.source_kind, config.source_options)
        self._decoders = ThreadPoolExecutor(config.decode_threads or torch.get_num_threads(), "decode")
        self._files = Budget()  # bytes of the files that are being decoded
        self._models_thread = ThreadPoolExecutor(1, "models")  # one, as each has its own OpenMP threads
        self._activity = Activity()
        self._name = f"{socket.gethostname()}:{os.getpid()}"
        self.stop = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._store is not None:
            self._store.close()

    def specs(self) -> list[GroupSpec]:
        """Return the templates of `groups`, which depend on the weights."""
        return [self._with_run_attributes(encoder.spec) for encoder in self._encoders]

    def _choose_batch_size(self, groups: tuple[str, ...]) -> int:
        """Return the recorded batch size if it fits, as last bits may depend on it, else the largest that fits."""
        store = self._open_store() if store_exists(self._config.store) else None
        existing = sorted(set(groups) & set(store.group_names())) if store else []
        sizes = [store.group(name).attributes.get("batch_size") for name in existing] if store else []
        recorded = min((size for size in sizes if size), default=None)
        if self._device.type != "cuda":
            return recorded or CPU_BATCH
        fits = fits_on_gpu(
            lambda crops: [encoder(crops) for encoder in self._encoders], self._config.resolution, self._device
        )
        return recorded if recorded and fits(recorded) else largest_batch(fits)

    def _with_run_attributes(self, spec: GroupSpec) -> GroupSpec:
        attributes = spec.attributes | {"batch_size": self._batch_size}
        if self._device.type == "cpu":
            attributes["fingerprint"] = attributes["fingerprint"] | {"threads": torch.get_num_threads()}
        return dataclasses.replace(spec, attributes=attributes)

    def run(self, task: ShardTask, on_images: Callable[[int], None] | None = None) -> ShardResult:
        """Encode one shard for its groups and commit it; `on_images` is called with the size of each batch.

        Raises StoreError when an image has changed since an earlier group was encoded from it.
        """
        start = time.monotonic()
        clocks: dict[str, list[ModelClock]] = {group: [] for group in task.groups}
        store = self._open_store()
        encoders = [encoder for encoder in self._encoders if encoder.spec.path in task.groups]
        bad: list[Quarantined] = []
        checksums: list[int] = []
        with ExitStack() as stack:
            writers = [
                stack.enter_context(
                    ShardWriter(store.path, store.manifest, encoder.spec, task.shard, replace=task.replace)
                )
                for encoder in encoders
            ]
            if on_images:  # a failed shard is counted again when it is retried
                stack.push(lambda kind, *_: on_images(-len(checksums)) if kind else None)
            samples = writers[0].samples
            records = list(records_of(store.samples.slice(samples.start, len(samples))))
            for batch in self._decoded_batches(records):
                bad += _quarantined(batch, records, len(checksums), samples.start)
                with _naming(records[len(checksums) : len(checksums) + len(batch)]):
                    for encoder, passes in zip(encoders, self._encode_batch(batch, encoders, writers), strict=True):
                        clocks[encoder.spec.path] += passes
                checksums += [item.checksum for item in batch]
                if on_images:
                    on_images(len(batch))
            sums = np.array(checksums, dtype=np.uint32)
            with self._activity.waiting_for(WRITING):
                store.fetch_commits(task.shard)
                _require_same_images(store, task, sums, records)
                overflowed = _commit(store, writers, sums, bad)
        in_float32 = tuple(records[sample - samples.start].key for sample in sorted(overflowed))
        busy = {group: sum(clock.seconds() for clock in passes) for group, passes in clocks.items()}
        return ShardResult(
            task.shard,
            len(records),
            len(bad),
            self._name,
            time.monotonic() - start,
            busy,
            self._activity.take(),
            in_float32,
        )

    def _open_store(self) -> Store:
        with self._opening:  # the first two shards start at the same time
            if self._store is None:
                self._store = open_store(self._config.store)
            return self._store

    def _decoded_batches(self, records: list[Record]) -> Iterator[list[_Decoded]]:
        """Yield batches of decoded images, in order; images are decoded at most two batches ahead of the models."""
        waiting: deque[Future[_Decoded]] = deque()
        rest = iter(records)
        batch: list[_Decoded] = []
        try:
            for _ in records:
                while len(waiting) < 2 * self._batch_size and (record := next(rest, None)) is not None:
                    waiting.append(self._decoders.submit(self._decode, record))
                with self._activity.waiting_for(IMAGES):
                    batch.append(waiting.popleft().result())
                if len(batch) == self._batch_size:
                    yield batch
                    batch = []
            if batch:
                yield batch
        finally:
            for future in waiting:
                future.cancel()

    def _decode(self, record: Record) -> _Decoded:
        if self.stop.is_set():
            raise StoppedError
        with self._files.hold(record.num_bytes, MAX_IMAGE_BYTES):
            data = b""
            try:
                data = self._source.read(record)
                cut_levels = self._open_store().manifest.pixels is None
                max_pixels = self._config.max_image_pixels
                crop = decode_crop(data, self._config.resolution, cut_levels=cut_levels, max_pixels=max_pixels)
                return _Decoded(crop, crc32c_bytes(data))
            except BadImageError as error:
                return _Decoded(None, crc32c_bytes(data), str(error))

    def _encode_batch(
        self, batch: list[_Decoded], encoders: list[GroupEncoder], writers: list[ShardWriter]
    ) -> list[tuple[ModelClock, ...]]:
        """Encode a batch and append it to the shard files; return the clocks of each encoder."""
        side = self._config.resolution
        blank = np.zeros((side, side, 3), dtype=np.uint8)
        crops = np.stack([blank if item.crop is None else item.crop for item in batch])
        broken = np.array([item.crop is None for item in batch])
        with self._activity.waiting_for(MODELS):
            outputs = self._models_thread.submit(self._run_models, crops, encoders).result()
        for writer, encoded in zip(writers, outputs, strict=True):
            arrays = encoded.arrays
            if broken.any():
                arrays = {name: array.copy() for name, array in arrays.items()}
                for array in arrays.values():
                    array[broken] = 0
            with self._activity.waiting_for(WRITING):
                writer.append(arrays, encoded.token_cosine, [row for row in encoded.float32_rows if not broken[row]])
        return [encoded.clocks for encoded in outputs]

    def _run_models(self, crops: npt.NDArray[np.uint8], encoders: list[GroupEncoder]) -> list[EncodedBatch]:
        images = torch.from_numpy(crops).to(self._device).permute(0, 3, 1, 2)
        return [encoder(images) for encoder in encoders]


@contextmanager
def _naming(records: list[Record]) -> Iterator[None]:
    """Add the images of a batch to an error of its models."""
    try:
        yield
    except (StoreError, WeightsError) as error:
        raise type(error)(f"images {records[0].key} to {records[-1].key}: {error}") from error


def _quarantined(batch: list[_Decoded], records: list[Record], offset: int, first: int) -> list[Quarantined]:
    """Return the broken images of a batch that starts at `offset` in the shard, whose first sample is `first`."""
    return [
        Quarantined(index=first + offset + i, key=records[offset + i].key, reason=item.reason)
        for i, item in enumerate(batch)
        if item.crop is None
    ]


def _commit(
    store: Store, writers: list[ShardWriter], checksums: npt.NDArray[np.uint32], bad: list[Quarantined]
) -> set[int]:
    """Commit the shard in all groups; return the samples that overflowed in half precision."""
    overflowed: set[int] = set()
    for writer in writers:
        commit = writer.commit(checksums, tuple(bad))
        store.upload_shard(commit)
        overflowed |= {*commit.float32_samples}
    return overflowed


def _require_same_images(
    store: Store, task: ShardTask, checksums: npt.NDArray[np.uint32], records: list[Record]
) -> None:
    for group in store.group_names():
        try:
            commit = read_commit(store.path, group, task.shard)
        except StoreError:
            if not task.replace:
                raise
            continue  # it is damaged, and is being replaced, too
        if commit is None:
            continue
        changed = np.flatnonzero(commit.source_checksums != checksums)
        if len(changed):
            raise StoreError(
                f"image {records[changed[0]].key} (and {len(changed) - 1} more of shard {task.shard}) differs from the "
                f"one that {group} was encoded from: restore the original images, or create a new store"
            )
