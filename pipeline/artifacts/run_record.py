"""The record of a training run, `run.json`: notes, tags, and one session per start of `train`."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal, TypeAlias

from ...converter import read_json, shown, structure, unstructure
from ...errors import ConfigError
from ...stores.files import write_json
from ..runtime.machine import process_start
from .run_folder import RunFolder

State: TypeAlias = Literal["running", "finished", "stopped", "failed", "killed"]
ShownState: TypeAlias = Literal["running", "finished", "stopped", "failed", "killed", "unknown"]

# A session is updated with the rows of the log. One on another machine that was not updated for so long may have ended.
STALE = timedelta(minutes=15)
CLOCK_SLACK_S = 60.0  # a process that was started so long after the session has only the same ID


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One start of `train`, as recorded by its first rank."""

    started: str  # ISO 8601, UTC, as all times
    ended: str | None  # None while it is running, and if it was killed
    updated: str
    state: State
    error: str | None  # first line of the error of a failed session
    start_step: int
    end_step: int  # the last step taken or, until the session has ended, the last one recorded
    host: str
    pid: int
    gpu: str | None
    num_gpus: int
    cpu: str
    cpu_flags: tuple[str, ...]
    versions: dict[str, str]
    git_commit: str | None  # of the repository that `train` was started in, if any
    git_dirty: bool | None
    command: str
    images: int | None = None  # that the run draws from; None in records of earlier versions
    bytes_per_image: int | None = None  # read at the start step

    def __post_init__(self) -> None:
        for text in (self.started, self.updated, self.ended):
            if text is not None and not _is_time(text):
                raise ConfigError(f"{shown(text)} is not a time: expected a form such as {time_text(0)}")

    def shown_state(self) -> ShownState:
        """Return the state, but `killed` or `unknown` for a session that cannot be running any more.

        `killed`: its process on this machine no longer exists. `unknown`: it ran on another machine, and was not
        updated for 15 minutes.
        """
        if self.state != "running":
            return self.state
        if self.host == socket.gethostname():
            start, latest = process_start(self.pid), datetime.fromisoformat(self.started).timestamp() + CLOCK_SLACK_S
            return "running" if start is not None and start < latest else "killed"
        return "running" if datetime.now(UTC) - datetime.fromisoformat(self.updated) < STALE else "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """The contents of `run.json`."""

    created: str
    notes: str = ""
    tags: tuple[str, ...] = ()
    sessions: tuple[Session, ...] = ()  # oldest first


def _is_time(text: str) -> bool:
    try:
        return datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        return False


def time_text(seconds: float | None = None) -> str:
    """Return a POSIX timestamp, by default now, as ISO 8601 in UTC."""
    time = datetime.now(UTC) if seconds is None else datetime.fromtimestamp(seconds, UTC)
    return time.isoformat(timespec="seconds")


def read_run_record(run: RunFolder) -> RunRecord | None:
    """Read the record of a run; None for a run of a version that wrote none.

    Raises:
        ConfigError: the file is damaged or from another version.
    """
    if not run.record_file.exists():
        return None
    return structure(read_json(run.record_file), RunRecord, str(run.record_file))


def write_run_record(run: RunFolder, record: RunRecord) -> None:
    """Write the record of a run, atomically."""
    write_json(run.record_file, unstructure(record))
