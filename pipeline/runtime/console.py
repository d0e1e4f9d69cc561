"""Log messages on stderr: plain lines for information, prefixed with the level for warnings and errors.

Only the command line installs this handler. A program that imports repa_pipe configures logging itself.
"""

from __future__ import annotations

import logging
import sys
from typing import TextIO

ROOT = "repa_pipe"


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return text if record.levelno <= logging.INFO else f"{record.levelname.lower()}: {text}"


class _Stderr(logging.StreamHandler[TextIO]):
    """A handler that writes to the current sys.stderr, which tests and progress bars may replace."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def log_to_stderr(level: int = logging.INFO) -> None:
    """Write the package's log messages of at least `level` to stderr. At DEBUG, they include the logger's name."""
    logger = logging.getLogger(ROOT)
    for handler in [handler for handler in logger.handlers if isinstance(handler, _Stderr)]:
        logger.removeHandler(handler)
    handler = _Stderr(sys.stderr)
    handler.setFormatter(_Formatter("%(name)s: %(message)s" if level <= logging.DEBUG else "%(message)s"))
    logger.addHandler(handler)
    logger.setLevel(level)
