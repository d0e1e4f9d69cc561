"""Resuming a run of which files are damaged: from the checkpoint before, with the settings that a checkpoint holds.

The caller holds the lease of the run folder.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from ...config import TrainConfig
from ...errors import CheckpointError, ConfigError, DamagedCheckpointError, RepaPipeError
from .checkpoints import load_checkpoint
from .damaged import set_aside
from .run_folder import RunFolder

logger = logging.getLogger(__name__)


def load_last_checkpoint(run: RunFolder) -> tuple[Path, dict[str, Any]] | None:
    """Return the last checkpoint of a run that is not damaged, and its content; None if the run has none.

    Damaged ones after it are set aside, with a warning that states the steps that are lost.

    Raises:
        CheckpointError: all are damaged, or the last one is that of something else. A run never starts again silently.
    """
    while found := run.checkpoints():
        path = found[-1]
        try:
            return path, load_checkpoint(path)
        except DamagedCheckpointError as error:
            if len(found) == 1:
                raise CheckpointError(
                    f"{error}; there is no earlier checkpoint in {path.parent}: restore one from a copy, or delete the "
                    "folder to start again"
                ) from error
            first, last = int(found[-2].stem) + 1, int(path.stem)
            set_aside(path, error, f"steps {first:,} to {last:,} are lost: resuming from {found[-2].name}")
    return None


def restore_config(run: RunFolder) -> None:
    """Restore the settings of a run with checkpoints from the last one that can be read, if their file cannot.

    Raises:
        ConfigError: the file is damaged, and so are all checkpoints.
    """
    try:
        run.read_config()
        return
    except ConfigError as error:
        problem = error
    for path in reversed(run.checkpoints()):
        try:
            config = TrainConfig.from_json(load_checkpoint(path)["config"], f"{path}: config")
        except RepaPipeError as error:
            logger.warning("%s", error)
            continue
        if run.config_file.exists():
            set_aside(run.config_file, problem, f"the settings are restored from {path.name}")
        else:
            logger.warning("%s; the settings are restored from %s", problem, path.name)
        run.write_config(config)
        return
    if run.checkpoints():
        raise problem
