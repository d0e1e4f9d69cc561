"""Where and when runs were trained: sessions, hardware, versions and commit, as the runs recorded them.

Runs of version 0.1.0 recorded nothing. A record that cannot be read becomes a note.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass

from ...errors import ConfigError
from ..artifacts.run_folder import RunFolder
from ..artifacts.run_record import RunRecord, Session, read_run_record
from .runs import Run
from .tables import Cell, Table, seconds_text

_SHOWN_OF_COMMIT = 12


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
        try:
            record = read_run_record(RunFolder(run.folder))
        except ConfigError as error:
            problems.append(f"The environment of {run.name} is not shown: {error}.")
            continue
        if record is not None:
            sessions = _sessions_table(run.name, record.sessions)
            environments.append(Environment(i, run.name, _properties(record), sessions))
    return environments, problems


def _properties(record: RunRecord) -> tuple[tuple[str, str], ...]:
    """Return the properties that were recorded; those that sessions share are shown as in the last one."""
    found = [("Notes", record.notes), ("Tags", ", ".join(record.tags)), ("Created", _time(record.created))]
    for last in record.sessions[-1:]:
        found += [
            ("State", f"{last.shown_state()}{f': {last.error}' if last.error else ''}"),
            ("Command", last.command),
            ("CPU flags", " ".join(last.cpu_flags)),
            ("Versions", ", ".join(f"{name} {version}" for name, version in last.versions.items())),
        ]
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
                session.shown_state(),
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
    seconds = (ended - started).total_seconds()
    return seconds_text(seconds) if seconds >= 0 else ""  # the clock was set back meanwhile


def _steps(session: Session) -> str:
    return f"{session.start_step:,} to {session.end_step:,}"


def _gpus(session: Session) -> str:
    if not session.gpu:
        return "none"
    return f"{session.num_gpus} × {session.gpu}"


def _commit(session: Session) -> str:
    changes = " with uncommitted changes" if session.git_dirty else ""
    return f"{session.git_commit[:_SHOWN_OF_COMMIT]}{changes}" if session.git_commit else ""
