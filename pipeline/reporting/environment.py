"""Where and when runs were trained: sessions, hardware, versions and commit, as the runs recorded them.

Runs of earlier versions recorded nothing; later versions may record more. Unknown keys are therefore ignored, and a
record that cannot be read becomes a note.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ...converter import read_json, structure
from ...errors import ConfigError
from ..artifacts.run_folder import RunFolder
from .runs import Run
from .tables import Cell, Table, seconds_text

_SHOWN_OF_COMMIT = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One process that trained a run, from its start to its end."""

    started: str = ""
    ended: str | None = None
    state: str = ""
    start_step: int | None = None
    end_step: int | None = None
    host: str | None = None
    gpu: str | None = None
    num_gpus: int | None = None
    cpu: str | None = None
    cpu_flags: tuple[str, ...] = ()
    versions: dict[str, str] | None = None
    git_commit: str | None = None
    git_dirty: bool | None = None
    command: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """The contents of a run's record that a report shows."""

    created: str = ""
    notes: str = ""
    tags: tuple[str, ...] = ()
    sessions: tuple[Session, ...] = ()


@dataclass(frozen=True, slots=True)
class Environment:
    """What a report shows of a run's record."""

    run: int
    name: str
    properties: tuple[tuple[str, str], ...]
    sessions: Table


def read_environments(runs: Sequence[Run]) -> tuple[list[Environment], list[str]]:
    """Return the environment of every run that recorded it, and notes on records that cannot be read."""
    environments, problems = [], []
    for i, run in enumerate(runs):
        path = RunFolder(run.folder).record_file
        if not path.exists():
            continue
        try:
            record = read_record(path)
        except ConfigError as error:
            problems.append(f"The environment of {run.name} is not shown: {error}.")
            continue
        environments.append(Environment(i, run.name, _properties(record), _sessions_table(run.name, record.sessions)))
    return environments, problems


def read_record(path: Path) -> RunRecord:
    """Read a run's record without the keys that a report does not show; ConfigError when a value has another type."""
    values = _known(read_json(path), RunRecord)
    if isinstance(values.get("sessions"), list):
        values["sessions"] = [_known(session, Session) for session in values["sessions"]]
    return structure(values, RunRecord, str(path))


def _known(values: Any, kind: type[RunRecord | Session]) -> Any:
    names = {field.name for field in fields(kind)}
    return {name: value for name, value in values.items() if name in names} if isinstance(values, dict) else values


def _properties(record: RunRecord) -> tuple[tuple[str, str], ...]:
    """Return the properties that were recorded; those that sessions share are shown as in the last one."""
    last = record.sessions[-1] if record.sessions else Session()
    found = (
        ("State", last.state),
        ("Notes", record.notes),
        ("Tags", ", ".join(record.tags)),
        ("Created", _time(record.created)),
        ("Command", last.command),
        ("CPU flags", " ".join(last.cpu_flags)),
        ("Versions", ", ".join(f"{name} {version}" for name, version in (last.versions or {}).items())),
    )
    return tuple((name, value) for name, value in found if value)


def _sessions_table(name: str, sessions: Sequence[Session]) -> Table:
    header = ("Started", "Duration", "Steps", "State", "Host", "GPU", "CPU", "Commit")
    rows = tuple(
        tuple(
            Cell(text or "–")
            for text in (
                _time(session.started),
                _duration(session),
                _steps(session),
                session.state,
                session.host,
                _gpus(session),
                session.cpu,
                _commit(session),
            )
        )
        for session in sessions
    )
    return Table(f"Sessions of {name}", tuple(map(Cell, header)), rows)


def _time(text: str | None) -> str:
    """Return an ISO time as `2026-11-26 18:10 UTC`; other texts unchanged."""
    parsed = _parsed(text)
    if parsed is None:
        return text or ""
    zone = f" {parsed.tzname()}" if parsed.tzinfo else ""
    return f"{parsed:%Y-%m-%d %H:%M}{zone}"


def _parsed(text: str | None) -> datetime.datetime | None:
    try:
        return datetime.datetime.fromisoformat(text) if text else None
    except ValueError:
        return None


def _duration(session: Session) -> str:
    started, ended = _parsed(session.started), _parsed(session.ended)
    if started is None or ended is None or (started.tzinfo is None) != (ended.tzinfo is None):
        return ""
    return seconds_text((ended - started).total_seconds())


def _steps(session: Session) -> str:
    ends = [f"{step:,}" for step in (session.start_step, session.end_step) if step is not None]
    return " to ".join(ends)


def _gpus(session: Session) -> str:
    if not session.gpu:
        return "none" if session.num_gpus == 0 else ""
    return f"{session.num_gpus} × {session.gpu}" if session.num_gpus else session.gpu


def _commit(session: Session) -> str:
    changes = " with uncommitted changes" if session.git_dirty else ""
    return f"{session.git_commit[:_SHOWN_OF_COMMIT]}{changes}" if session.git_commit else ""
