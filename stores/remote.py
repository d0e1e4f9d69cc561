"""The files of a store behind a URL (s3://, gs://, az://, http://, https://), through obstore.

Credentials and endpoints come from the environment, as object_store reads it: AWS_ACCESS_KEY_ID, AWS_REGION,
AWS_ENDPOINT, AWS_SKIP_SIGNATURE for public buckets, GOOGLE_APPLICATION_CREDENTIALS, …; for S3 also from AWS's
credentials file.
"""

from __future__ import annotations

import datetime
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from ..errors import RemoteError, StoreError, first_line
from .remote_options import READ_S, WRITE_S, client_options, endpoint_hint, file_credentials
from .retries import BURST_S, LONGEST_PAUSE_S, Retries

if TYPE_CHECKING:
    from zarr.abc.store import Store as ZarrStore

READ_THREADS = 64  # requests in flight; each one takes tens of milliseconds, almost regardless of its size
WRITE_THREADS = 8  # files in flight; obstore also uploads the parts of a large file concurrently
PART_BYTES = 1 << 22  # of a file that is downloaded in parts
REOPEN_S = 1.0  # threads that fail at the same time read credentials once

_MISSING = (FileNotFoundError, NotADirectoryError, IsADirectoryError)

Range = tuple[str, int, int]  # key, first byte, number of bytes
Item = TypeVar("Item")
Result = TypeVar("Result")


def is_url(path: str | Path) -> bool:
    """Return whether a store is specified by a URL rather than a folder."""
    return "://" in str(path)


def local_folder(path: str | Path) -> Path:
    """Return the folder that a path without a URL scheme means; `~` is the home folder, also where no shell sees it."""
    return Path(path).expanduser()


class _Backends(NamedTuple):
    """obstore's connections, which differ in the time that a request may take."""

    reads: Any
    uploads: Any


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
        self._credentials = file_credentials(self.url)  # kept, since the file may be missing while it is rewritten
        self._backends, self._opened_at = self._open(), time.monotonic()
        self._lock = threading.Lock()
        self._retries = Retries(self.url)
        self._readers = ThreadPoolExecutor(READ_THREADS, thread_name_prefix="remote-read")
        self._writers = ThreadPoolExecutor(WRITE_THREADS, thread_name_prefix="remote-write")

    def _open(self) -> _Backends:
        try:
            import obstore
        except ImportError as error:
            raise StoreError(f"{self.url} needs the package obstore: pip install 'repa-pipe[cloud]'") from error
        options: dict[str, Any] = {
            "retry_config": {
                "max_retries": 1000,  # the time is the limit
                "retry_timeout": datetime.timedelta(seconds=BURST_S),
                "backoff": {"max_backoff": datetime.timedelta(seconds=LONGEST_PAUSE_S)},
            }
        }
        if self._credentials:
            options["credential_provider"] = self._credentials
        limits: list[dict[str, Any]] = [
            {"client_options": client_options(self.url, seconds)} for seconds in (READ_S, WRITE_S)
        ]
        try:
            return _Backends(*(obstore.store.from_url(self.url, **options, **limit) for limit in limits))
        except (obstore.exceptions.BaseError, ValueError) as error:
            raise StoreError(f"{self.url} cannot be opened ({first_line(error)})") from error

    def close(self) -> None:
        """Stop the threads."""
        for pool in (self._readers, self._writers):
            pool.shutdown(wait=False, cancel_futures=True)  # only an interrupted call can still be running

    def read_through_zarr(self, read: Callable[[ZarrStore], Result]) -> Result:
        """Return the result of `read`, which is called with a zarr store of the files.

        Raises:
            RemoteError: the server cannot be reached or refuses access.
        """
        from zarr.storage import ObjectStore

        def attempt(_: None) -> Result:
            return read(ObjectStore(self._backends.reads, read_only=True))

        return self._map(self._readers, attempt, [None], "read")[0]

    def get(self, keys: Sequence[str]) -> dict[str, bytes]:
        """Read entire files. Files that do not exist are omitted.

        Raises:
            RemoteError: the server cannot be reached or refuses access.
        """
        import obstore

        def fetch(key: str) -> bytes | None:
            try:
                return obstore.get(self._backends.reads, key).bytes().to_bytes()
            except _MISSING:
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

        def fetch(chosen: list[int]) -> list[memoryview]:
            (key,) = {ranges[place][0] for place in chosen}
            starts, sizes = zip(*(ranges[place][1:] for place in chosen), strict=True)
            parts = obstore.get_ranges(self._backends.reads, key, starts=starts, lengths=sizes)
            return [memoryview(part) for part in parts]

        self._require_same_process()
        found: dict[int, memoryview] = {}
        together = {self._readers.submit(fetch, chosen): chosen for chosen in places.values() if len(chosen) > 1}
        for call, chosen in together.items():
            if call.exception() is None:
                found |= zip(chosen, call.result(), strict=True)
        # the rest one by one: of many ranges in one call, one would fail each time that it is repeated
        missing = [[place] for place in range(len(ranges)) if place not in found]
        for (place,), (part,) in zip(missing, self._map(self._readers, fetch, missing, "read"), strict=True):
            found[place] = part
        for place, (key, start, size) in enumerate(ranges):
            if found[place].nbytes != size:
                raise StoreError(f"{self.url}/{key} is damaged: it has no bytes {start:,} to {start + size:,}")
        return [found[place] for place in range(len(ranges))]

    def download(self, key: str, fd: int) -> None:
        """Write a file into an open local one, in parts that are not kept in memory.

        Raises:
            FileNotFoundError: there is no such file.
            RemoteError: the server cannot be reached or refuses access.
        """
        import obstore

        def size_of(_: None) -> int | None:
            try:  # not a HEAD request, whose errors have no code
                return obstore.get(self._backends.reads, key).meta["size"]
            except _MISSING:
                return None

        def fetch(start: int) -> None:
            part = obstore.get_range(self._backends.reads, key, start=start, length=min(PART_BYTES, size - start))
            os.pwrite(fd, part, start)

        (found,) = self._map(self._readers, size_of, [None], "read")
        if found is None:
            raise FileNotFoundError(f"{self.url}/{key} does not exist")
        size = found
        os.truncate(fd, size)
        self._map(self._readers, fetch, range(0, size, PART_BYTES), "read")

    def put(self, files: Mapping[str, Path]) -> None:
        """Upload local files, large ones in parts. Each file appears atomically.

        Raises:
            RemoteError: the server cannot be reached or refuses the files.
        """
        import obstore

        self._map(self._writers, lambda key: obstore.put(self._backends.uploads, key, files[key]), files, "written")

    def delete(self, keys: Sequence[str]) -> None:
        """Delete files. Those that do not exist are ignored.

        Raises:
            RemoteError: the server cannot be reached or refuses to delete.
        """
        import obstore

        def remove(key: str) -> None:
            with suppress(*_MISSING):
                obstore.delete(self._backends.uploads, key)

        self._map(self._writers, remove, keys, "written")

    def _map(
        self, pool: ThreadPoolExecutor, request: Callable[[Item], Result], items: Iterable[Item], purpose: str
    ) -> list[Result]:
        """Call `request` for every item in the threads of `pool`, repeated while that may help.

        No call is still running when this returns, unless it was interrupted.
        """
        self._require_same_process()
        given_up = threading.Event()

        def repeat(item: Item) -> Result:
            return self._retries.call(lambda: request(item), self._reopen, given_up)

        calls = [pool.submit(repeat, item) for item in items]
        try:
            wait(calls, return_when=FIRST_EXCEPTION)
            return [call.result() for call in calls if call.done()]
        except (RemoteError, OSError) as error:
            text = str(error) if isinstance(error, RemoteError) else f"({first_line(error)}): check the URL"
            raise RemoteError(f"{self.url} cannot be {purpose} {text}{endpoint_hint(self.url)}") from error
        finally:
            given_up.set()
            for call in calls:
                call.cancel()
            if isinstance(sys.exception(), Exception | None):
                wait(calls)

    def _require_same_process(self) -> None:
        if self._pid != os.getpid():  # threads do not survive a fork, neither ours nor obstore's
            raise StoreError(
                f"{self.url} was opened before a fork: open it in the new process, or use the start method 'spawn'"
            )

    def _reopen(self) -> None:
        """Read credentials from their files again."""
        with self._lock:
            if time.monotonic() - self._opened_at > REOPEN_S:  # the other threads fail at the same time
                self._backends, self._opened_at = self._open(), time.monotonic()
