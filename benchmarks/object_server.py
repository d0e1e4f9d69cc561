"""A fast object store of the files in a folder, for measurements of its clients: a process of its own, without copies.

It answers GET requests for objects, with or without a range, as S3 does with the bucket in the path. Signatures are not
verified. Every answer starts after a given latency.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import re
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

_REQUEST = re.compile(rb"(GET|HEAD) /([^ ?]*)")
_RANGE = re.compile(rb"\r\nrange: bytes=(\d+)-(\d+)", re.IGNORECASE)
_HEAD = (
    "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nContent-Range: bytes {first}-{last}/{size}\r\n"
    'ETag: "{size}"\r\nLast-Modified: Fri, 27 Nov 2026 00:00:00 GMT\r\n\r\n'
)


class _Server:
    def __init__(self, folder: Path, latency: float) -> None:
        self.folder, self.latency = folder, latency

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            try:
                request = await reader.readuntil(b"\r\n\r\n")
            except (asyncio.IncompleteReadError, ConnectionError):
                break
            if self.latency:
                await asyncio.sleep(self.latency)
            await self._send(request, writer)
        writer.close()

    async def _send(self, request: bytes, writer: asyncio.StreamWriter) -> None:
        target = _REQUEST.match(request)
        assert target is not None
        path = self.folder / target[2].decode()
        if not path.is_file():
            writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            return
        size = path.stat().st_size
        part = _RANGE.search(request)
        first, last = (int(part[1]), min(int(part[2]), size - 1)) if part else (0, size - 1)
        status, length = "206 Partial Content" if part else "200 OK", last - first + 1
        writer.write(_HEAD.format(status=status, length=length, first=first, last=last, size=size).encode())
        if target[1] == b"GET" and length:
            with path.open("rb") as file:
                await asyncio.get_running_loop().sendfile(writer.transport, file, first, length)


def _run(folder: Path, latency: float, port: Connection) -> None:
    async def main() -> None:
        server = await asyncio.start_server(_Server(folder, latency).answer, "127.0.0.1", 0, backlog=1024)
        port.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(main())


@contextmanager
def serve(folder: Path, latency: float) -> Iterator[str]:
    """Yield the URL of a server of the objects in `folder`, whose answers start after `latency` seconds."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_run, args=(folder, latency, theirs), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{ours.recv()}"
    finally:
        process.terminate()
        process.join()
