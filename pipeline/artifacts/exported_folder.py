"""Folders of exported models: they appear complete or not at all, and record which checkpoint they were made from."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...converter import read_json
from ...errors import CheckpointError, ConfigError, first_line
from ...stores.files import fsync_directory, temporary_path, write_json
from ...version import __version__

RECORD = "repa_pipe.json"


def is_same_folder(out: Path, facts: Mapping[str, Any]) -> bool:
    """Return whether a folder was exported with these facts; ConfigError if it holds anything else."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    record = out / RECORD
    if record.is_file() and read_json(record) | {"version": None} == {**facts, "version": None}:
        return True
    raise ConfigError(f"--out {out} exists and holds something else: delete it, or specify another --out")


@contextmanager
def new_folder(out: Path, facts: Mapping[str, Any]) -> Iterator[Path]:
    """Yield a temporary folder that becomes `out`, with its record, when the block succeeds.

    Raises:
        CheckpointError: it cannot be written.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(out)
    temporary.mkdir()
    try:
        yield temporary
        write_json(temporary / RECORD, {"version": __version__, **facts})
        mode = (temporary / RECORD).stat().st_mode
        for path in temporary.rglob("*"):
            if path.is_file():
                path.chmod(mode)  # safetensors writes files that others cannot read
        temporary.rename(out)  # also onto an empty folder
        fsync_directory(out.parent)
    except OSError as error:
        raise CheckpointError(
            f"{out} could not be written ({first_line(error)}): free space and export again"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
