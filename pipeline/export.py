"""`repa-pipe export`: write the model of a checkpoint in a form that others load.

What exists with the same contents is kept; anything else is never overwritten.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from ..config import ExportConfig
from ..errors import ConfigError
from .artifacts.checkpoints import load_checkpoint, read_header, resolve_checkpoint
from .artifacts.exported import SUFFIX, exported_of, write_exported
from .runtime.lease import lease

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ExportResult:
    """The output of `export`."""

    out: str
    checkpoint: str
    step: int
    weights: str  # ema or model
    num_bytes: int


def run(config: ExportConfig) -> ExportResult:
    """Export the weights of a checkpoint.

    Raises:
        ConfigError: `--out` has another ending, or exists and holds something else.
        CheckpointError: the checkpoint is missing, damaged or not one of repa-pipe; or the output cannot be written.
    """
    out = Path(config.out)
    check_out(out)
    checkpoint = resolve_checkpoint(config.checkpoint)
    values = load_checkpoint(checkpoint)
    header = read_header(values, checkpoint)
    tensors, facts = exported_of(values, config.ema)
    with lease(out.absolute().parent, out.name):
        if not write_exported(out, tensors, facts):
            logger.info("%s already exists with the same contents; skipping", out)
    return ExportResult(str(out), str(checkpoint), header.steps, facts["weights"], out.stat().st_size)


def check_out(out: Path) -> None:
    """Raise ConfigError unless the output has the name of a safetensors file."""
    if out.suffix != SUFFIX or out.is_dir():
        raise ConfigError(f"--out is {str(out)!r}: expected the name of a file that ends in {SUFFIX}")
