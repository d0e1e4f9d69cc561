"""The files of a store behind a URL (s3://, gs://, az://, http://, https://, hf://), through obstore.

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
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from ..errors import RemoteError, StoreError, first_line
from . import hub
from .concurrency import LEVELS, Concurrency
from .remote_options import READ_S, WRITE_S, client_options, endpoint_hint, file_credentials
from .retries import BURST_S, LONGEST_PAUSE_S, Retries

if TYPE_CHECKING:
    from zarr.abc.store import Store as ZarrStore

READ_THREADS = LEVELS[-1]  # requests in flight at most
GAP_BYTES = 1 << 20  # bytes that are fetched and dropped rather than making another request; object_store's own value
MERGED_BYTES = 1 << 22  # of a request for several parts; a larger one would be waited for alone
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


class _RangeRequest(NamedTuple):
    """A request for neighboring parts of a file."""

    key: str
    start: int
    size: int
    places: list[int]  # of the parts, in what was asked for


def merge_ranges(ranges: Sequence[Range]) -> list[_RangeRequest]:
    """Return the requests that fetch `ranges`: one for neighbors that are at most GAP_BYTES apart."""
    merged: list[_RangeRequest] = []
    for place in sorted(range(len(ranges)), key=ranges.__getitem__):
        key, start, size = ranges[place]
        if merged:
            last = merged[-1]
            end = last.start + last.size
            total = max(end, start + size) - last.start
            if last.key == key and start - end <= GAP_BYTES and total <= MERGED_BYTES:
                merged[-1] = _RangeRequest(key, last.start, total, [*last.places, place])
                continue
        merged.append(_RangeRequest(key, start, size, [place]))
    return merged


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
        self._address = hub.download_address(self.url) if hub.is_hub(self.url) else self.url
        self._pid = os.getpid()
        self._credentials = file_credentials(self.url)  # kept, since the file may be missing while it is rewritten
        self._backends, self._opened_at = self._open(), time.monotonic()
        self._lock = threading.Lock()
        self._retries, self._concurrency = Retries(self.url), Concurrency()
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
        # sent to the Hub alone: not to the host of large files, to which the Hub redirects
        headers = {"default_headers": hub.authorization()} if hub.is_hub(self.url) else {}
        limits: list[dict[str, Any]] = [
            {"client_options": client_options(self._address, seconds) | headers} for seconds in (READ_S, WRITE_S)
        ]
        try:
            return _Backends(*(obstore.store.from_url(self._address, **options, **limit) for limit in limits))
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
        """Read small parts of files, in the given order. See `read_ranges`."""
        found: dict[int, memoryview] = {}
        self._read(merge_ranges(ranges), ranges, found.__setitem__, self._concurrency.limit)
        return [found[place] for place in range(len(ranges))]

    def read_ranges(self, ranges: Sequence[Range], receive: Callable[[int, memoryview], None]) -> None:
        """Read parts of files, and pass each one to `receive` as soon as it has arrived.

        Args:
            ranges: the parts.
            receive: called with the position of a part in `ranges` and its bytes, in the thread that has fetched it.

        Raises:
            RemoteError: the server cannot be reached or refuses access, or a file does not exist.
            StoreError: a file is too short.
        """
        requests, limit, start = merge_ranges(ranges), self._concurrency.limit, time.perf_counter()
        self._read(requests, ranges, receive, limit)
        if len(requests) >= limit:
            elapsed = time.perf_counter() - start
            self._concurrency.record(limit, sum(request.size for request in requests) / elapsed)

    def _read(
        self,
        requests: Sequence[_RangeRequest],
        ranges: Sequence[Range],
        receive: Callable[[int, memoryview], None],
        limit: int,
    ) -> None:
        import obstore

        def fetch(request: _RangeRequest) -> memoryview:
            found = obstore.get_range(self._backends.reads, request.key, start=request.start, length=request.size)
            return memoryview(found)

        def deliver(request: _RangeRequest, data: memoryview) -> None:
            for place in request.places:
                key, start, size = ranges[place]
                part = data[start - request.start :][:size]
                if part.nbytes != size:
                    raise StoreError(f"{self.url}/{key} is damaged: it has no bytes {start:,} to {start + size:,}")
                receive(place, part)

        self._map(self._readers, fetch, requests, "read", deliver=deliver, limit=limit)

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

        self._require_writable()
        self._map(self._writers, lambda key: obstore.put(self._backends.uploads, key, files[key]), files, "written")

    def delete(self, keys: Sequence[str]) -> None:
        """Delete files. Those that do not exist are ignored.

        Raises:
            RemoteError: the server cannot be reached or refuses to delete.
        """
        import obstore

        self._require_writable()

        def remove(key: str) -> None:
            with suppress(*_MISSING):
                obstore.delete(self._backends.uploads, key)

        self._map(self._writers, remove, keys, "written")

    def _map(
        self,
        pool: ThreadPoolExecutor,
        request: Callable[[Item], Result],
        items: Iterable[Item],
        purpose: str,
        *,
        deliver: Callable[[Item, Result], None] | None = None,
        limit: int = READ_THREADS,
    ) -> list[Result]:
        """Call `request` for every item in at most `limit` threads of `pool`, repeated while that may help.

        With `deliver`, results are passed to it, in the same threads, and not returned. No call is still running when
        this returns, unless it was interrupted.
        """
        self._require_same_process()
        given_up, results = threading.Event(), dict[int, Result]()
        todo = deque(enumerate(items))

        def work() -> None:
            while todo and not given_up.is_set():
                try:
                    place, item = todo.popleft()
                except IndexError:  # another thread was faster
                    return
                result = self._retries.call(partial(request, item), self._reopen, given_up)
                if deliver is None:
                    results[place] = result
                else:
                    deliver(item, result)

        calls = [pool.submit(work) for _ in range(min(limit, len(todo)))]
        try:
            wait(calls, return_when=FIRST_EXCEPTION)
            for call in calls:
                if call.done():
                    call.result()
        except (RemoteError, OSError) as error:
            text = str(error) if isinstance(error, RemoteError) else f"({first_line(error)}): check the URL"
            raise RemoteError(f"{self.url} cannot be {purpose} {text}{endpoint_hint(self.url)}") from error
        finally:
            given_up.set()
            for call in calls:
                call.cancel()
            if isinstance(sys.exception(), Exception | None):
                wait(calls)
        return [results[place] for place in sorted(results)]

    def _require_same_process(self) -> None:
        if self._pid != os.getpid():  # threads do not survive a fork, neither ours nor obstore's
            raise StoreError(
                f"{self.url} was opened before a fork: open it in the new process, or use the start method 'spawn'"
            )

    def _require_writable(self) -> None:
        if hub.is_hub(self.url):
            raise StoreError(f"{self.url}: {hub.READ_ONLY}")

    def _reopen(self) -> None:
        """Read credentials from their files again."""
        with self._lock:
            if time.monotonic() - self._opened_at > REOPEN_S:  # the other threads fail at the same time
                self._backends, self._opened_at = self._open(), time.monotonic()
