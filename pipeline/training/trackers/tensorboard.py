"""TensorBoard: event files in the run folder."""

from __future__ import annotations

from typing import Any

from ...artifacts.images import Block
from ...artifacts.run_folder import RunFolder


class TensorBoard:
    """Writes event files.

    Args:
        run: has the event files in `tensorboard/`.
        start_step: later steps of earlier sessions are discarded: they will be logged again.
    """

    def __init__(self, run: RunFolder, start_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(run.tensorboard, purge_step=start_step + 1)

    def log_scalars(self, step: int, values: dict[str, float]) -> None:
        """Log scalars of a step."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def log_image(self, step: int, image: Block) -> None:
        """Log an image, uint8 `[H, W, 3]`."""
        self._writer.add_image("samples", image, step, dataformats="HWC")

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()
