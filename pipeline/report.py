"""`repa-pipe report`: compare training runs in a self-contained HTML report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..config.paths import place
from ..errors import ConfigError, StoreError
from ..stores import Store, open_store
from ..stores.files import atomic_write_bytes
from .reporting.page import page_values, render
from .reporting.runs import Run, read_runs
from .reporting.sections import Section


def run(  # noqa: PLR0917 - every argument has its own meaning; most callers pass them by name
    runs: Sequence[str],
    out: str,
    store: str | None = None,
    title: str | None = None,
    notes: Sequence[str] = (),
    commands: Sequence[str] = (),
    sections: Sequence[Section] = (),
    source_kind: str | None = None,
    download: bool = False,
) -> Path:
    """Write a report of runs and return its path.

    Args:
        runs: run folders of `repa-pipe train`.
        out: HTML file to write.
        store: current location of the store. Default: the one that the first run was trained from; without a store at
            that location, the report does not describe it and states the reason.
        title: title of the report. Default: derived from the store and the number of runs.
        notes: sentences shown in the notes.
        commands: commands shown in the report. Default: the training commands, derived from the settings of the runs.
        sections: shown above the comparison of the runs.
        source_kind: kind of the source of the store. Default: the recorded one, unless that is a plug-in.
        download: download the VAE that the store names if it is not on this machine, to show reconstructions.

    Raises:
        ConfigError: a folder is not a run folder, a file in it is damaged, or the report cannot be written.
        StoreError: `store` is given and there is no store at that location.
    """
    read = read_runs(runs)
    with _open_store(read, store) as (opened, problems):
        values = page_values(read, opened, title, [*notes, *problems], commands, source_kind, download)
    page = render(values | {"sections": sections})
    path = Path(out)
    try:
        atomic_write_bytes(path, page.encode())
    except OSError as error:
        raise ConfigError(f"--out {path} cannot be written ({error.strerror}): choose another file") from error
    return path


@contextmanager
def _open_store(runs: Sequence[Run], requested: str | None) -> Iterator[tuple[Store | None, list[str]]]:
    """Yield the store and notes on problems with it; a store that was not requested may be None."""
    paths = list(dict.fromkeys(place(run.config.store) for run in runs))
    problems = []
    if requested is None and len(paths) > 1:
        problems.append(f"The runs were trained from {len(paths)} stores; this report describes only {paths[0]}.")
    try:
        opened = open_store(requested or runs[0].config.store)
    except StoreError as error:
        if requested is not None:
            raise
        problems.append(f"The store is not at its recorded location ({error}). Pass --store to specify where it is.")
        yield None, problems
        return
    with opened:
        yield opened, problems
