"""The files of a store behind a URL (s3://, gs://, az://, http://, https://), through zarr's ObjectStore and obstore.

Credentials and endpoints come from the environment, as object_store reads it: AWS_ACCESS_KEY_ID, AWS_REGION,
AWS_ENDPOINT, AWS_SKIP_SIGNATURE for public buckets, GOOGLE_APPLICATION_CREDENTIALS, ….
"""

from __future__ import annotations

import asyncio
import datetime
import os
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import RemoteError, StoreError, first_line

if TYPE_CHECKING:
    from zarr.abc.store import Store as ZarrStore
    from zarr.core.buffer import Buffer

UPLOADS = 8  # files at a time; obstore sends the parts of a large one side by side
CONCURRENCY = 64  # requests in flight; each takes tens of milliseconds, whatever it carries
RETRIES = 6  # with growing pauses: about half a minute in all
RETRY_FOR = datetime.timedelta(seconds=60)

Range = tuple[str, int, int]  # key, first byte, number of bytes


def is_url(path: str) -> bool:
    """Whether a store's name is a URL rather than a folder."""
    return "://" in path


class RemoteFiles:
    """Reads and writes files below a URL, many at a time.

    Raises StoreError when the package that speaks to object stores is not installed, or the URL is of no known kind.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._pid = os.getpid()
        try:
            import obstore
        except ImportError as error:
            raise StoreError(f"{url} needs the package obstore: pip install 'repa-pipe[cloud]'") from error
        options: dict[str, Any] = {"retry_config": {"max_retries": RETRIES, "retry_timeout": RETRY_FOR}}
        if url.startswith("http://"):
            options["client_options"] = {"allow_http": True}
        try:
            self._backend = obstore.store.from_url(self.url, **options)
        except (obstore.exceptions.BaseError, ValueError) as error:
            raise StoreError(f"{url} cannot be opened ({first_line(error)})") from error

    def zarr_store(self) -> ZarrStore:
        """zarr's view of the files, for what is read through zarr-python."""
        from zarr.storage import ObjectStore

        return ObjectStore(self._backend, read_only=True)

    def get(self, keys: Sequence[str]) -> dict[str, bytes]:
        """Whole files; those that do not exist are left out. RemoteError when the server cannot be asked."""
        store = self.zarr_store()

        async def fetch() -> list[Buffer | None]:
            from zarr.core.buffer import default_buffer_prototype

            slots = asyncio.Semaphore(CONCURRENCY)

            async def one(key: str) -> Buffer | None:
                async with slots:
                    return await store.get(key, default_buffer_prototype())

            return await asyncio.gather(*map(one, keys))

        found = zip(keys, self._run(fetch(), "read"), strict=True)
        return {key: buffer.to_bytes() for key, buffer in found if buffer is not None}

    def get_ranges(self, ranges: Sequence[Range]) -> list[memoryview]:
        """Parts of files, in the order asked for; StoreError when one is absent or shorter."""
        import zarr
        from zarr.abc.store import RangeByteRequest
        from zarr.core.buffer import default_buffer_prototype

        wanted = [(key, RangeByteRequest(start, start + size)) for key, start, size in ranges]
        with zarr.config.set({"async.concurrency": CONCURRENCY}):
            found = self._run(self.zarr_store().get_partial_values(default_buffer_prototype(), wanted), "read")
        parts = [memoryview(b"" if buffer is None else buffer.as_numpy_array()) for buffer in found]
        for (key, start, size), part in zip(ranges, parts, strict=True):
            if part.nbytes != size:
                raise StoreError(f"{self.url}/{key}: bytes {start:,} to {start + size:,} are not there: it is damaged")
        return parts

    def put(self, files: Mapping[str, Path]) -> None:
        """Upload local files, large ones in parts; each appears whole or not at all.

        Raises RemoteError when the server cannot be reached or does not take them.
        """
        import obstore

        async def upload() -> None:
            slots = asyncio.Semaphore(UPLOADS)

            async def one(key: str, path: Path) -> None:
                async with slots:
                    await obstore.put_async(self._backend, key, path)

            await asyncio.gather(*(one(key, path) for key, path in files.items()))

        self._run(upload(), "written")

    def _run(self, work: Coroutine[Any, Any, Any], purpose: str) -> Any:
        """Wait for `work` in a thread of its own: the caller's may have an event loop that runs, as in notebooks."""
        import obstore

        if self._pid != os.getpid():
            work.close()
            raise StoreError(f"{self.url} was opened before a fork: open it in the new process, or start it by spawn")
        try:
            with ThreadPoolExecutor(1) as pool:
                return pool.submit(asyncio.run, work).result()
        except (obstore.exceptions.BaseError, OSError) as error:
            raise RemoteError(
                f"{self.url} cannot be {purpose} ({first_line(error)}): check the URL, the network, and the "
                "credentials in the environment (docs/stores.md)"
            ) from error
