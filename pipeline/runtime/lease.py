"""One writer at a time: a lease is a file that names its holder. It needs no file locks, and survives kills.

The holder creates `.lease-N` in the folder and touches it every few seconds. On this machine, another command sees
whether the holder's process still exists. On another one, it watches the file by its own clock, so the clocks of the
two are never compared; a file that nobody touches for half a minute has no holder anymore.

Any number of commands may find a dead holder at the same time. Each lists the leases, makes sure that all of their
holders are dead, creates the next number, and lists again. It holds the lease if it sees exactly what it saw before and
its own file; it then deletes the others. Two commands cannot both succeed, since the one that lists last sees the file
of the other. A holder that was suspended and lost its lease finds its file missing, and ends its process.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import random
import shlex
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from ...converter import structure, unstructure
from ...errors import BusyError, ConfigError
from .machine import process_ticks

logger = logging.getLogger(__name__)

BEAT_S = 5.0
POLL_S = 1.0
SILENT_POLLS = 30  # polls are counted instead of seconds: whoever watches may be suspended too
EXIT_CODE = 2  # that of errors

_MAX_COMMAND = 200
_held: set[_Lease] = set()


@dataclass(frozen=True, slots=True)
class Holder:
    """The process that holds a lease."""

    host: str
    pid: int
    ticks: int  # when the process was started, by the clock of the kernel: process IDs are used again
    machine: str  # the same for all processes whose IDs can be compared; empty if unknown
    since: str
    command: str
    token: str  # different for every lease

    def __post_init__(self) -> None:
        if not 0 < self.pid < 2**31:
            raise ConfigError(f"{self.pid} is not the ID of a process")

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} ({self.command}, since {self.since})"

    def is_dead_here(self) -> bool | None:
        """Return whether the process has ended; None if it belongs to another machine or container."""
        if not self.machine or self.machine != _machine():
            return None
        ticks = process_ticks(self.pid)
        if ticks is not None:
            return ticks != self.ticks
        try:  # /proc may hide the processes of other users
            os.kill(self.pid, 0)
        except PermissionError:
            return False
        except ProcessLookupError:
            return True
        return True  # a zombie


@contextmanager
def lease(folder: Path, name: str = "") -> Iterator[None]:
    """Hold the lease of a folder, or of the files of one name in it, until the block ends.

    If the lease is lost meanwhile, which takes half a minute in which this process does nothing, the process ends
    without writing anything else.

    Args:
        folder: created if it does not exist.
        name: commands with different names do not exclude each other.

    Raises:
        BusyError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        held = _acquire(folder, name)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        held = None  # finished work can be read from a folder in which nothing can be written
    if held is None:
        yield
        return
    stopped = threading.Event()
    beats = threading.Thread(target=_beat, args=(held, stopped), name=f"lease of {folder}", daemon=True)
    _held.add(held)
    beats.start()
    try:
        yield
    finally:
        stopped.set()
        beats.join()
        _held.discard(held)
        with suppress(OSError):
            if held.is_mine():
                held.path.unlink()


def require_held() -> None:
    """End the process if it has lost a lease. Called before files are replaced, besides every few seconds."""
    for held in tuple(_held):
        _end_if_lost(held)


def wait_until_free(folder: Path) -> None:
    """Wait until no process holds a lease in a folder or below it; a warning names the process that does."""
    is_first = True
    while True:
        try:
            _require_dead(_read(folder.rglob(".*lease-*")), folder)
            return
        except BusyError as error:
            logger.log(logging.WARNING if is_first else logging.DEBUG, "waiting: %s", error)
            is_first = False
            time.sleep(POLL_S)


@dataclass(frozen=True, slots=True)
class _Lease:
    path: Path
    content: bytes

    def is_mine(self) -> bool:
        try:
            return self.path.read_bytes() == self.content
        except FileNotFoundError:
            return False


def _beat(held: _Lease, stopped: threading.Event) -> None:
    while not stopped.wait(BEAT_S):
        _end_if_lost(held)
        with suppress(OSError):  # the server may be back before anybody takes the lease
            os.utime(held.path)


def _end_if_lost(held: _Lease) -> None:
    try:
        if held.is_mine():
            return
    except OSError:
        return
    others = (_parse(content) for content in _list(held.path.parent, held.path.name.rpartition("-")[0] + "-").values())
    taker = next((str(other) for other in others if other), "another process, or its files were moved or deleted")
    logger.error(
        "%s was taken over by %s, because this process did not respond; it ends without writing anything else",
        held.path.parent,
        taker,
    )
    sys.stderr.flush()
    os._exit(EXIT_CODE)


def _acquire(folder: Path, name: str) -> _Lease:
    prefix = f".{name}.lease-" if name else ".lease-"
    while True:
        found = _list(folder, prefix)
        _require_dead(found, folder / name)
        number = 1 + max((int(path.name.removeprefix(prefix)) for path in found), default=0)
        held = _Lease(folder / f"{prefix}{number}", json.dumps(unstructure(_this_process())).encode())
        if not _create(held):
            continue
        if _list(folder, prefix) == {**found, held.path: held.content}:
            for path in found:
                path.unlink(missing_ok=True)
            return held
        held.path.unlink(missing_ok=True)
        time.sleep(random.uniform(0, POLL_S))


def _create(held: _Lease) -> bool:
    """Create a file that does not exist yet; return False if it does."""
    try:
        file = held.path.open("xb")
    except FileExistsError:
        return False
    try:
        with file:
            file.write(held.content)
    except OSError:  # such as a full disk
        held.path.unlink(missing_ok=True)
        raise
    return True


def _list(folder: Path, prefix: str) -> dict[Path, bytes]:
    """Return the leases of one name in a folder, and their contents."""
    names = (path.name for path in folder.iterdir() if path.name.startswith(prefix))
    return _read(folder / name for name in names if name.removeprefix(prefix).isdecimal())


def _read(paths: Iterable[Path]) -> dict[Path, bytes]:
    found = {}
    for path in paths:
        with suppress(FileNotFoundError):  # deleted since it was listed
            found[path] = path.read_bytes()
    return found


def _require_dead(found: Mapping[Path, bytes], place: Path) -> None:
    """Raise BusyError if a holder lives. Wait for as long as it takes to know about one of another machine."""
    watched = {}
    for path, content in found.items():
        holder = _parse(content)
        is_dead = holder.is_dead_here() if holder else None
        if is_dead is False:
            raise _busy(place, holder)
        if is_dead is None:
            watched[path] = content
    if watched:
        _watch(watched, place)


def _watch(watched: Mapping[Path, bytes], place: Path) -> None:
    """Return once nobody has touched the leases for half a minute, or one has changed: then all are read again."""
    described = " and ".join(str(_parse(content) or "an unknown process") for content in watched.values())
    logger.info("%s was left by %s, or is in use: waiting up to %g s", place, described, POLL_S * SILENT_POLLS)
    first = {path: _touched(path) for path in watched}
    for _ in range(SILENT_POLLS):
        time.sleep(POLL_S)
        for path, content in watched.items():
            with suppress(FileNotFoundError):
                if path.read_bytes() == content:
                    if _touched(path) != first[path]:
                        raise _busy(place, _parse(content))
                    continue
            return


def _touched(path: Path) -> int | None:
    """Return when a file was touched. It is opened, since a client of NFS asks the server only then."""
    try:
        with path.open("rb") as file:
            return os.fstat(file.fileno()).st_mtime_ns
    except FileNotFoundError:
        return None


def _busy(place: Path, holder: Holder | None) -> BusyError:
    return BusyError(
        f"{place} is in use by {holder or 'an unknown process'}: wait until it has ended, or end it, and re-run this "
        "command"
    )


def _parse(content: bytes) -> Holder | None:
    """Return the holder; None for a file that is not yet, or not completely, written."""
    try:
        return structure(json.loads(content), Holder, "lease")
    except (ValueError, RecursionError, ConfigError):
        return None


def _this_process() -> Holder:
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    return Holder(
        host=socket.gethostname(),
        pid=os.getpid(),
        ticks=process_ticks(os.getpid()) or 0,
        machine=_machine(),
        since=datetime.now(UTC).isoformat(timespec="seconds"),
        command=command if len(command) <= _MAX_COMMAND else f"{command[:_MAX_COMMAND]} …",
        token=uuid.uuid4().hex,
    )


def _machine() -> str:
    """Return the boot of the kernel and the namespace of process IDs, which differs between containers."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"  # noqa: PTH115 - not a path
    except OSError:
        return ""
