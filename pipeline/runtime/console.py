"""What the commands write: results on stdout, and log messages on stderr as plain lines or JSON objects.

Names and messages that come from files are made printable here (`printable`). Of several ranks, only the first one
shows information and notices; warnings and errors of others name their rank. Only the command line installs this
handler. A program that imports repa_pipe configures logging itself.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from datetime import UTC, datetime
from typing import Any, TextIO

import click

from .printable import one_line, printable

ROOT = "repa_pipe"
LOG_FORMATS = ("text", "json")
NOTICE = {"is_notice": True}  # pass as `extra` to a warning that is the same on every rank


def echo(text: object, *, nl: bool = True, err: bool = False) -> None:
    """Print the result of a command; special characters become escapes."""
    click.echo(printable(str(text)), nl=nl, err=err)


def echo_json(value: Any) -> None:
    """Print a result as JSON, in which special characters are escaped already, except for one."""
    click.echo(_json(value, indent=1))


def _json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, indent=indent).replace("\x7f", "\\u007f")


class _Formatter(logging.Formatter):
    """One line per message, and the traceback of an exception below it if there is one."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - of logging
        record.message = one_line(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:  # noqa: N802 - of logging
        return printable(super().formatException(ei))

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return text if record.levelno <= logging.INFO else f"{record.levelname.lower()}: {_rank_text()}{text}"


class _JsonFormatter(logging.Formatter):
    """One object per line: time (UTC), level, logger, message, and the numbers of a progress message."""

    def format(self, record: logging.LogRecord) -> str:
        values = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _rank_text() + record.getMessage(),
        }
        return _json(values | getattr(record, "progress", {}))


def is_first_rank() -> bool:
    """Return whether this process shows what all ranks would show: it is the first of them, or the only one."""
    return os.environ.get("RANK", "0") in ("", "0") or os.environ.get("WORLD_SIZE", "1") in ("", "1")


def _rank_text() -> str:
    return "" if is_first_rank() else f"rank {os.environ['RANK']}: "


def _is_shown(record: logging.LogRecord) -> bool:
    """Return whether this rank shows a record; debug messages come from all of them."""
    is_notice = record.levelno == logging.INFO or hasattr(record, "is_notice")
    return is_first_rank() or not is_notice


class _Stderr(logging.StreamHandler[TextIO]):
    """A handler that writes to the current sys.stderr, which tests and progress bars may replace."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def log_to_stderr(level: int = logging.INFO, log_format: str = "text") -> None:
    """Write the package's log messages of at least `level` to stderr.

    Args:
        level: the lowest level. At DEBUG, messages in text include the logger's name.
        log_format: one of LOG_FORMATS.
    """
    logger = logging.getLogger(ROOT)
    for handler in [handler for handler in logger.handlers if isinstance(handler, _Stderr)]:
        logger.removeHandler(handler)
    handler = _Stderr(sys.stderr)
    text = _Formatter("%(name)s: %(message)s" if level <= logging.DEBUG else "%(message)s")
    handler.addFilter(_is_shown)
    handler.setFormatter(_JsonFormatter() if log_format == "json" else text)
    logger.addHandler(handler)
    logger.setLevel(level)


def logs_json() -> bool:
    """Return whether messages on stderr are JSON objects."""
    return any(isinstance(handler.formatter, _JsonFormatter) for handler in logging.getLogger(ROOT).handlers)
