"""The files of a store behind a URL (s3://, gs://, az://, http://, https://), through obstore.

Credentials and endpoints come from the environment, as object_store reads it: AWS_ACCESS_KEY_ID, AWS_REGION,
AWS_ENDPOINT, AWS_SKIP_SIGNATURE for public buckets, GOOGLE_APPLICATION_CREDENTIALS, ….
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import RemoteError, StoreError, first_line

if TYPE_CHECKING:
    from zarr.abc.store import Store as ZarrStore

READ_THREADS = 64  # requests in flight; each one takes tens of milliseconds, almost regardless of its size
WRITE_THREADS = 8  # files in flight; obstore also uploads the parts of a large file concurrently
RETRIES = 6  # with exponential backoff: about half a minute in total
RETRY_TIMEOUT = datetime.timedelta(seconds=60)

Range = tuple[str, int, int]  # key, first byte, number of bytes
Item = TypeVar("Item")
Result = TypeVar("Result")


def is_url(path: str) -> bool:
    """Return whether a store is specified by a URL rather than a folder."""
    return "://" in path


def local_folder(path: str | Path) -> Path:
    """Return the folder that a path without a URL scheme means; `~` is the home folder, also where no shell sees it."""
    return Path(path).expanduser()


class RemoteFiles:
    """Reads and writes the files below a URL, many at a time. Thread-safe.

    Args:
        url: the store's URL.

    Raises:
        StoreError: the package obstore is not installed, or the URL has an unknown scheme.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._pid = os.getpid()
        try:
            import obstore
        except ImportError as error:
            raise StoreError(f"{url} needs the package obstore: pip install 'repa-pipe[cloud]'") from error
        options: dict[str, Any] = {"retry_config": {"max_retries": RETRIES, "retry_timeout": RETRY_TIMEOUT}}
        if url.startswith("http://"):
            options["client_options"] = {"allow_http": True}
        try:
            self._backend = obstore.store.from_url(self.url, **options)
        except (obstore.exceptions.BaseError, ValueError) as error:
            raise StoreError(f"{url} cannot be opened ({first_line(error)})") from error
        self._readers = ThreadPoolExecutor(READ_THREADS, thread_name_prefix="remote-read")
        self._writers = ThreadPoolExecutor(WRITE_THREADS, thread_name_prefix="remote-write")

    def close(self) -> None:
        """Stop the threads."""
        self._readers.shutdown()
        self._writers.shutdown()

    def zarr_store(self) -> ZarrStore:
        """Return a zarr store of the files, for arrays that are read through zarr-python."""
        from zarr.storage import ObjectStore

        return ObjectStore(self._backend, read_only=True)

    def get(self, keys: Sequence[str]) -> dict[str, bytes]:
        """Read entire files. Files that do not exist are omitted.

        Raises:
            RemoteError: the server cannot be reached or refuses access.
        """
        import obstore

        def fetch(key: str) -> bytes | None:
            try:
                return obstore.get(self._backend, key).bytes().to_bytes()
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                return None

        found = zip(keys, self._map(self._readers, fetch, keys, "read"), strict=True)
        return {key: data for key, data in found if data is not None}

    def get_ranges(self, ranges: Sequence[Range]) -> list[memoryview]:
        """Read parts of files, in the given order.

        Raises:
            RemoteError: the server cannot be reached or refuses access, or a file does not exist.
            StoreError: a file is too short.
        """
        import obstore

        places: dict[str, list[int]] = {}  # per file: one call per file lets obstore merge adjacent ranges
        for place, (key, _, _) in enumerate(ranges):
            places.setdefault(key, []).append(place)

        def fetch(key: str) -> list[memoryview]:
            starts, sizes = zip(*(ranges[place][1:] for place in places[key]), strict=True)
            parts = obstore.get_ranges(self._backend, key, starts=starts, lengths=sizes)
            return [memoryview(part) for part in parts]

        found: dict[int, memoryview] = {}
        for key, parts in zip(places, self._map(self._readers, fetch, places, "read"), strict=True):
            found |= zip(places[key], parts, strict=True)
        for place, (key, start, size) in enumerate(ranges):
            if found[place].nbytes != size:
                raise StoreError(f"{self.url}/{key} is damaged: it has no bytes {start:,} to {start + size:,}")
        return [found[place] for place in range(len(ranges))]

    def put(self, files: Mapping[str, Path]) -> None:
        """Upload local files, large ones in parts. Each file appears atomically.

        Raises:
            RemoteError: the server cannot be reached or refuses the files.
        """
        import obstore

        self._map(self._writers, lambda key: obstore.put(self._backend, key, files[key]), files, "written")

    def _map(
        self, pool: ThreadPoolExecutor, function: Callable[[Item], Result], items: Iterable[Item], purpose: str
    ) -> list[Result]:
        """Call `function` for every item in the threads of `pool`. No call is still running when this returns."""
        import obstore

        if self._pid != os.getpid():  # threads do not survive a fork, neither ours nor obstore's
            raise StoreError(
                f"{self.url} was opened before a fork: open it in the new process, or use the start method 'spawn'"
            )
        calls = [pool.submit(function, item) for item in items]
        try:
            return [call.result() for call in calls]
        except (obstore.exceptions.BaseError, OSError) as error:
            raise RemoteError(
                f"{self.url} cannot be {purpose} ({first_line(error)}): check the URL, the network, and the "
                "credentials in the environment (docs/stores.md)"
            ) from error
        finally:
            for call in calls:
                call.cancel()
            wait(calls)
