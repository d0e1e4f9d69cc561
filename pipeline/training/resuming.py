"""The checkpoint that all ranks resume from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import CheckpointError
from ..artifacts.checkpoints import load_checkpoint
from ..artifacts.recovery import load_last_checkpoint
from ..artifacts.run_folder import RunFolder
from ..runtime.distributed import DistributedContext

if TYPE_CHECKING:
    import torch

_NONE, _FAILED = -1, -2


def load_same_checkpoint(
    run: RunFolder, ranks: DistributedContext, device: torch.device
) -> tuple[Path, dict[str, Any]] | None:
    """Return the last checkpoint that is not damaged, the same on every rank; None if the run has none.

    The first rank chooses it, and sets damaged ones aside.

    Raises:
        CheckpointError: none can be read.
    """
    found, step = None, _FAILED
    try:
        if ranks.is_first:
            found = load_last_checkpoint(run)
            step = int(found[0].stem) if found else _NONE
    finally:
        step = ranks.from_first(step, device)
    if step == _FAILED:
        raise CheckpointError(f"the first rank cannot resume from {run.checkpoint_folder}: see its error")
    if ranks.is_first or step == _NONE:
        return found
    path = next(path for path in run.checkpoints() if int(path.stem) == step)
    return path, load_checkpoint(path)
