"""Records in `run.json` when, where and how a run is trained. The record does not affect the training."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ...config import TrainConfig
from ...errors import first_line
from ..artifacts.damaged import read_or_set_aside
from ..artifacts.recovery import restore_config
from ..artifacts.run_folder import RunFolder
from ..artifacts.run_record import RunRecord, Session, State, read_run_record, time_text, write_run_record
from ..runtime.distributed import DistributedContext
from ..runtime.lease import lease
from ..runtime.machine import cpu_model, cuda_version, git_state, relevant_cpu_flags, software_versions

if TYPE_CHECKING:
    import torch

    from ...stores import AlignmentDataset

UPDATE_EVERY_S = 10.0
RESTORE_WAIT_S = 60


@contextmanager
def owned(run: RunFolder, config: TrainConfig, ranks: DistributedContext) -> Iterator[None]:
    """Own the run folder until the block ends: the first rank holds its lease. Others wait for it where they join it.

    Raises:
        BusyError: another process is training in the folder.
        ConfigError: another one, which has just ended, trained with other settings.
    """
    if not ranks.is_first:
        yield
        return
    with lease(run.path):
        run.remove_leftovers()
        run.require_same_settings(config)
        yield


def restore_settings(run: RunFolder, ranks: DistributedContext) -> None:
    """Restore the recorded settings of a run on the first rank, if they are damaged; others wait for it.

    Raises:
        BusyError: another process is training in the folder.
        ConfigError: they cannot be restored.
    """
    if not run.checkpoints() or run.has_config():
        return
    if ranks.is_first:
        with lease(run.path):
            restore_config(run)
        return
    for _ in range(RESTORE_WAIT_S):
        time.sleep(1)
        if run.has_config():
            return


class SessionRecorder:
    """Updates the last session of a run's record, at most every few seconds."""

    def __init__(self, run: RunFolder, session: Session) -> None:
        self._run, self._session = run, session
        record = _read_record(run)
        ended = [replace(each, state="killed") if each.state == "running" else each for each in record.sessions]
        self._record = replace(record, sessions=tuple(ended))
        self.step = session.start_step  # the last step taken
        self._write()

    def update(self) -> None:
        """Record the last step, if the record is older than a few seconds."""
        if time.monotonic() - self._written >= UPDATE_EVERY_S:
            self._write()

    def end(self, state: State, error: str | None = None) -> None:
        """Record the end of the session."""
        self._session = replace(self._session, state=state, ended=time_text(), error=error)
        self._write()

    def _write(self) -> None:
        self._session = replace(self._session, end_step=self.step, updated=time_text())
        write_run_record(self._run, replace(self._record, sessions=(*self._record.sessions, self._session)))
        self._written = time.monotonic()


def record_notes(run: RunFolder, config: TrainConfig) -> None:
    """Write `--notes` and `--tag`, if given, to the record of a run."""
    record = _read_record(run)
    notes = record.notes if config.notes is None else config.notes
    write_run_record(run, replace(record, notes=notes, tags=config.tag or record.tags))


def _read_record(run: RunFolder) -> RunRecord:
    """Return the record of a run, or a new one if there is none or if it is damaged."""
    lost = "its notes, tags and sessions are lost"
    return read_or_set_aside(run.record_file, lambda: read_run_record(run), lost) or _new_record(run)


def _new_record(run: RunFolder) -> RunRecord:
    """Return the record of a run that has none; a run of an earlier version may have checkpoints."""
    return RunRecord(created=time_text(min((path.stat().st_mtime for path in run.checkpoints()), default=None)))


@contextmanager
def recorded_session(
    run: RunFolder,
    config: TrainConfig,
    device: torch.device,
    ranks: DistributedContext,
    *,
    dataset: AlignmentDataset,
    start_step: int,
) -> Iterator[SessionRecorder | None]:
    """Record a session of training until the block ends. Ranks other than the first record nothing and get None."""
    if not ranks.is_first:
        yield None
        return
    recorder = SessionRecorder(run, _new_session(config, device, ranks, dataset, start_step))
    try:
        yield recorder
    except BaseException as error:
        with suppress(OSError):  # such as a full disk, which may be the error itself
            recorder.end("failed", first_line(error))
        raise
    recorder.end("finished" if recorder.step >= config.max_train_steps else "stopped")


def _new_session(
    config: TrainConfig, device: torch.device, ranks: DistributedContext, dataset: AlignmentDataset, step: int
) -> Session:
    import torch

    on_gpu = device.type == "cuda"
    cuda = cuda_version()
    git = git_state(Path.cwd())
    now = time_text()
    return Session(
        started=now,
        ended=None,
        updated=now,
        state="running",
        error=None,
        start_step=step,
        end_step=step,
        host=socket.gethostname(),
        pid=os.getpid(),
        gpu=torch.cuda.get_device_name(device) if on_gpu else None,
        num_gpus=ranks.world_size if on_gpu else 0,
        cpu=cpu_model(),
        cpu_flags=relevant_cpu_flags(),
        versions=software_versions() | ({"cuda": cuda} if cuda else {}),
        git_commit=git.commit if git else None,
        git_dirty=git.dirty if git else None,
        command=config.command(),
        images=len(dataset.rows),
        bytes_per_image=dataset.bytes_per_sample(step),
    )
