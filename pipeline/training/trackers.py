"""Experiment trackers: TensorBoard, Weights & Biases, or none. They do not replace the files in the run folder."""

from __future__ import annotations

import importlib.util
import uuid
from typing import Any, Protocol

from ...config import TrainConfig
from ...errors import ConfigError
from ..artifacts.images import Block
from ..artifacts.run_folder import RunFolder

PROJECT = "repa-pipe"


class Tracker(Protocol):
    """Receives the scalars and images of a run."""

    def log_scalars(self, step: int, values: dict[str, float]) -> None:
        """Log scalars of a step."""

    def log_image(self, step: int, image: Block) -> None:
        """Log an image, uint8 `[H, W, 3]`."""

    def close(self) -> None:
        """Flush and close."""


class _NoTracker:
    def log_scalars(self, step: int, values: dict[str, float]) -> None:
        pass

    def log_image(self, step: int, image: Block) -> None:
        pass

    def close(self) -> None:
        pass


class _TensorBoard:
    def __init__(self, run: RunFolder, start_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # steps after the checkpoint that the run resumes from will be logged again
        self._writer: Any = SummaryWriter(run.tensorboard, purge_step=start_step + 1)

    def log_scalars(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def log_image(self, step: int, image: Block) -> None:
        self._writer.add_image("samples", image, step, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


class _WandB:
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
        )

    def log_scalars(self, step: int, values: dict[str, float]) -> None:
        self._run.log(values, step=step)

    def log_image(self, step: int, image: Block) -> None:
        self._run.log({"samples": self._wandb.Image(image)}, step=step)

    def close(self) -> None:
        self._run.finish()


def open_tracker(config: TrainConfig, run: RunFolder, start_step: int) -> Tracker:
    """Open the tracker selected with --report-to; by default TensorBoard if it is installed.

    Raises:
        ConfigError: the selected tracker is not installed.
    """
    installed = {name: importlib.util.find_spec(name) is not None for name in ("tensorboard", "wandb")}
    kind = config.report_to or ("tensorboard" if installed["tensorboard"] else "none")
    if kind == "none":
        return _NoTracker()
    if not installed[kind]:
        raise ConfigError(
            f"--report-to is {kind!r}, which is not installed: run 'pip install {kind}', or pass --report-to none"
        )
    return _TensorBoard(run, start_step) if kind == "tensorboard" else _WandB(run, config)
