"""The images that a store was encoded from, cropped as they were then, and the same bytes as then."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from ...errors import BadImageError, SourceError
from ...sources import Record, decode_crop, open_recorded, records_of
from ...stores import Store
from ...stores.checksum import crc32c_bytes
from .images import Block


class Originals:
    """Reads the crops of samples; a context manager that ends its threads.

    Args:
        store: an open store.
        group: the group whose commit records hold the checksums of the images.
        source: where the images are. None: as recorded in the store.
        source_kind: kind of the source; required for a plug-in.

    Raises:
        SourceError: the images are unavailable.
    """

    def __init__(self, store: Store, group: str, source: str | None, source_kind: str | None) -> None:
        self._store, self._group = store, store.group(group)
        try:
            self._source = open_recorded(store.manifest.source, source, source_kind)
        except SourceError as error:
            raise SourceError(
                f"{store.location}: the images that it was encoded from cannot be read ({error}): pass their location "
                "as --source"
            ) from error
        self.path = self._source.path
        self._pool = ThreadPoolExecutor()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def read(self, rows: npt.NDArray[np.int64]) -> Block:
        """Return the crops of samples, uint8 `[B, R, R, 3]`.

        Raises:
            SourceError: an image is unavailable, or its bytes differ from those that were encoded.
        """
        records = records_of(self._store.samples.take(rows))
        return np.stack(list(self._pool.map(self._crop, rows.tolist(), records)))

    def _crop(self, row: int, record: Record) -> Block:
        manifest = self._store.manifest
        shard, place = divmod(row, manifest.shard_size)
        try:
            data = self._source.read(record)
            if crc32c_bytes(data) != self._group.commits[shard].source_checksums[place]:
                raise SourceError(
                    f"{self.path}: {record.key} differs from the image that {self._group.path} was encoded from: pass "
                    "the original images as --source"
                )
            return decode_crop(data, manifest.resolution, cut_levels=manifest.pixels is None)
        except BadImageError as error:
            raise SourceError(f"{self.path}: {record.key} cannot be decoded: {error}") from error
