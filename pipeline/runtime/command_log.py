"""The log of commands that run in processes of their own: each command, then its output."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import IO


def begin(log: IO[bytes], arguments: Sequence[str]) -> int:
    """Write the line of a `repa-pipe` command; return where its output begins."""
    log.write(f"$ {shlex.join(['repa-pipe', *arguments])}\n".encode())
    log.flush()
    return log.tell()


def problem_of(code: int | None, log: Path, start: int) -> str:
    """Return why a command ended, its exit code and its error in one line; an empty string for success."""
    if not code:
        return ""
    lines = log.read_bytes()[start:].decode(errors="replace").strip().splitlines() or ["no output"]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return f"exit code {code}: {(errors or lines)[-1]}"
