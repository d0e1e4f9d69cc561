"""One shard: read, decode and crop its images once, run every model that lacks it, write, commit.

A pure function of (source, config, shard): done twice it leaves the same bytes, so a retry is always safe. The same
object runs in this process or as a Ray actor.
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
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt
import torch

from ...config import EncodeConfig
from ...errors import BadImageError, StoreError
from ...sources import Record, Source, decode_crop, open_source, records_of
from ...stores import Store, open_store
from ...stores.checksum import crc32c_bytes
from ...stores.layout import FLIPPED, GroupSpec, features_group, latents_group
from ...stores.manifest import Quarantined, read_commit
from ...stores.upload import store_exists
from ...stores.writer import ShardWriter
from ..runtime.device import choose_device
from .batch_size import CPU_BATCH, fits_on_gpu, largest_batch
from .features import FeatureEncoder
from .latents import LatentEncoder


class Stage(Protocol):
    """A model that turns crops into one group's arrays."""

    spec: GroupSpec

    def __call__(self, crops: torch.Tensor) -> dict[str, npt.NDArray[Any]]:
        """Encode one batch."""


class WithFlips:
    """A stage that encodes every crop mirrored as well, into arrays of the same names with a suffix."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._names = [array.name for array in stage.spec.arrays]
        flipped = tuple(dataclasses.replace(array, name=array.name + FLIPPED) for array in stage.spec.arrays)
        self.spec = dataclasses.replace(stage.spec, arrays=stage.spec.arrays + flipped)

    def __call__(self, crops: torch.Tensor) -> dict[str, npt.NDArray[Any]]:
        """Encode one batch, then its mirror images."""
        flipped = self._stage(crops.flip(-1))
        return self._stage(crops) | {name + FLIPPED: flipped[name] for name in self._names}


@dataclass(frozen=True, slots=True)
class ShardResult:
    """What became of a shard."""

    shard: int
    num_images: int
    quarantined: int
    worker: str  # who encoded it: host and process
    seconds: float  # from its first read to its commit
    busy: float  # seconds of these in which one of its batches was in the models


@dataclass(frozen=True, slots=True)
class _Decoded:
    crop: npt.NDArray[np.uint8] | None
    checksum: int
    reason: str = ""


class StoppedError(Exception):
    """The run was told to stop in the middle of a shard."""


class ShardEncoder:
    """Holds the models of the groups in `groups` and encodes shards with them."""

    def __init__(self, config: EncodeConfig, groups: tuple[str, ...]) -> None:
        self._config = config
        self._store: Store | None = None
        self._device = choose_device(config.device)
        on_gpu = self._device.type == "cuda"
        precision = config.precision or ("fp16" if on_gpu else "fp32")
        if not on_gpu:
            self._use_recorded_threads(groups)
        self._stages = load_group_encoders(config, groups, self._device, precision)
        self._batch_size = config.batch_size or self._fitting_batch_size(groups)
        self._source: Source = open_source(config.source, config.source_kind)
        self._decoders = ThreadPoolExecutor(config.decode_threads or torch.get_num_threads(), "decode")
        self._models_thread = ThreadPoolExecutor(1, "models")  # one, as each has its own OpenMP threads
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
        """The templates of the groups that this encoder fills; known once the weights are."""
        return [self._with_circumstances(stage.spec) for stage in self._stages]

    def _fitting_batch_size(self, groups: tuple[str, ...]) -> int:
        """What the groups were begun with, where it fits, since last bits may depend on it; else what does."""
        store = self._open_store() if self._has_store() else None
        begun = set(groups) & set(store.group_names()) if store else set()
        recorded = [store.group(name).attributes.get("batch_size") for name in sorted(begun)] if store else []
        known = min((size for size in recorded if size), default=None)
        if self._device.type != "cuda":
            return known or CPU_BATCH
        fits = fits_on_gpu(
            lambda crops: [stage(crops) for stage in self._stages], self._config.resolution, self._device
        )
        return known if known and fits(known) else largest_batch(fits)

    def _has_store(self) -> bool:
        return store_exists(self._config.store)

    def _use_recorded_threads(self, groups: tuple[str, ...]) -> None:
        """Use as many threads as the groups were begun with: on a CPU, the last bits depend on it."""
        if self._has_store():
            store = self._open_store()
            for name in set(groups) & set(store.group_names()):
                torch.set_num_threads(store.group(name).fingerprint.get("threads", torch.get_num_threads()))

    def _with_circumstances(self, spec: GroupSpec) -> GroupSpec:
        attributes = spec.attributes | {"batch_size": self._batch_size}
        if self._device.type == "cpu":
            attributes["fingerprint"] = attributes["fingerprint"] | {"threads": torch.get_num_threads()}
        return dataclasses.replace(spec, attributes=attributes)

    def run(self, shard: int, groups: tuple[str, ...], on_images: Callable[[int], None] | None = None) -> ShardResult:
        """Encode one shard for `groups` and commit it.

        Raises StoreError when an image is not the one that an earlier group was encoded from.
        """
        begun, busy = time.monotonic(), 0.0
        store = self._open_store()
        stages = [stage for stage in self._stages if stage.spec.path in groups]
        bad: list[Quarantined] = []
        checksums: list[int] = []
        with ExitStack() as stack:
            writers = [
                stack.enter_context(ShardWriter(store.path, store.manifest, stage.spec, shard)) for stage in stages
            ]
            if on_images:  # a shard that fails is counted when it is tried again
                stack.push(lambda kind, *_: on_images(-len(checksums)) if kind else None)
            records = _records(store, writers[0].samples)
            for batch in self._decoded_batches(records):
                start = writers[0].samples.start + len(checksums)
                bad += [
                    Quarantined(
                        index=start + i, key=records[start + i - writers[0].samples.start].key, reason=item.reason
                    )
                    for i, item in enumerate(batch)
                    if item.crop is None
                ]
                busy += self._encode_batch(batch, stages, writers)
                checksums += [item.checksum for item in batch]
                if on_images:
                    on_images(len(batch))
            sums = np.array(checksums, dtype=np.uint32)
            store.fetch_commits(shard)
            self._require_same_images(store, shard, sums, records)
            for writer in writers:
                store.upload_shard(writer.commit(sums, tuple(bad)))
        seconds = time.monotonic() - begun
        return ShardResult(shard, len(records), len(bad), self._name, seconds, busy)

    def _open_store(self) -> Store:
        if self._store is None:
            self._store = open_store(self._config.store)
        return self._store

    def _decoded_batches(self, records: list[Record]) -> Iterator[list[_Decoded]]:
        """Decoded images in order, a batch at a time, at most two batches ahead of the models."""
        waiting: deque[Future[_Decoded]] = deque()
        rest = iter(records)
        batch: list[_Decoded] = []
        try:
            for _ in records:
                while len(waiting) < 2 * self._batch_size and (record := next(rest, None)) is not None:
                    waiting.append(self._decoders.submit(self._decode, record))
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
        data = b""
        try:
            data = self._source.read(record)
            return _Decoded(decode_crop(data, self._config.resolution), crc32c_bytes(data))
        except BadImageError as error:
            return _Decoded(None, crc32c_bytes(data), str(error))

    def _encode_batch(self, batch: list[_Decoded], stages: list[Stage], writers: list[ShardWriter]) -> float:
        """Encode a batch and append it; seconds in the models."""
        side = self._config.resolution
        blank = np.zeros((side, side, 3), dtype=np.uint8)
        crops = np.stack([blank if item.crop is None else item.crop for item in batch])
        broken = np.array([item.crop is None for item in batch])
        outputs, busy = self._models_thread.submit(self._run_models, crops, stages).result()
        for writer, arrays in zip(writers, outputs, strict=True):
            if broken.any():
                for name in (array.name for array in writer.spec.arrays):
                    arrays[name] = arrays[name].copy()
                    arrays[name][broken] = 0
            writer.append(arrays)
        return busy

    def _run_models(
        self, crops: npt.NDArray[np.uint8], stages: list[Stage]
    ) -> tuple[list[dict[str, npt.NDArray[Any]]], float]:
        """The stages' arrays of a batch, and the seconds that they took."""
        start = time.monotonic()
        images = torch.from_numpy(crops).to(self._device).permute(0, 3, 1, 2)
        return [stage(images) for stage in stages], time.monotonic() - start

    def _require_same_images(
        self, store: Store, shard: int, checksums: npt.NDArray[np.uint32], records: list[Record]
    ) -> None:
        for group in store.group_names():
            commit = read_commit(store.path, group, shard)
            if commit is None:
                continue
            changed = np.flatnonzero(commit.source_checksums != checksums)
            if len(changed):
                raise StoreError(
                    f"image {records[changed[0]].key} (and {len(changed) - 1} more of shard {shard}) has other "
                    f"bytes than when {group} was encoded: put the old images back, or make a new store"
                )


def _records(store: Store, rows: range) -> list[Record]:
    return list(records_of(store.samples.slice(rows.start, len(rows))))


def load_group_encoders(
    config: EncodeConfig, groups: tuple[str, ...], device: torch.device, precision: str
) -> list[Stage]:
    """Load the models whose groups are in `groups`."""
    stages: list[Stage] = []
    if latents_group(config.vae) in groups:
        stages.append(LatentEncoder(config, device, precision))
    stages += [
        FeatureEncoder(config, name, device, precision) for name in config.encoder if features_group(name) in groups
    ]
    return [WithFlips(stage) for stage in stages] if config.flip else stages
