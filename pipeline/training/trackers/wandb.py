"""Weights & Biases, online or, with WANDB_MODE=offline, in the run folder."""

from __future__ import annotations

import threading
import uuid
from typing import Any

from ....config import TrainConfig
from ...artifacts.images import Block
from ...artifacts.run_folder import RunFolder
from .tracker import PROJECT

START_S = 20.0  # its own limit is 90 s; a start takes a few seconds
END_S = 60.0  # for what is still to be uploaded; without a network it would try for days


class WandB:
    """A run in W&B, which a resumed run continues: its ID is in the run folder."""

    def __init__(self, run: RunFolder, config: TrainConfig) -> None:
        import wandb

        self._wandb: Any = wandb
        if not run.wandb_id.exists():
            run.wandb_id.write_text(uuid.uuid4().hex[:8])
        self._run: Any = wandb.init(
            project=PROJECT,
            name=config.exp_name,
            id=run.wandb_id.read_text(),
            resume="allow",
            group=config.group,
            notes=config.notes,
            tags=config.tag or None,
            config=config.as_json(),
            dir=run.path,
            settings=wandb.Settings(init_timeout=START_S),
        )

    def log_scalars(self, step: int, values: dict[str, float]) -> None:
        """Log scalars of a step."""
        self._run.log(values, step=step)

    def log_image(self, step: int, image: Block) -> None:
        """Log an image, uint8 `[H, W, 3]`."""
        self._run.log({"samples": self._wandb.Image(image)}, step=step)

    def close(self) -> None:
        """Wait for the upload, but not for long."""
        errors: list[Exception] = [TimeoutError(f"no end of the upload in {END_S:g} s: 'wandb sync' uploads the rest")]

        def finish() -> None:
            try:
                self._run.finish()
                errors.clear()
            except Exception as error:
                errors[:] = [error]

        thread = threading.Thread(target=finish, name="W&B upload", daemon=True)
        thread.start()
        thread.join(END_S)
        if errors:
            raise errors[0]
