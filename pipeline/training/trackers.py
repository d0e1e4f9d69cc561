"""Where a run's numbers and pictures go besides its own files: TensorBoard, Weights & Biases, or nowhere."""

from __future__ import annotations

import importlib.util
import uuid
from pathlib import Path
from typing import Any, Protocol

from ...config import TrainConfig
from ...errors import ConfigError
from ..artifacts.images import Block

PROJECT = "repa-pipe"


class Tracker(Protocol):
    """Somebody who wants to know."""

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Take numbers of a step."""

    def picture(self, step: int, image: Block) -> None:
        """Take a picture, uint8 `[H, W, 3]`."""

    def close(self) -> None:
        """Hand over what is still held."""


class _Nobody:
    def scalars(self, step: int, values: dict[str, float]) -> None:
        pass

    def picture(self, step: int, image: Block) -> None:
        pass

    def close(self) -> None:
        pass


class _TensorBoard:
    def __init__(self, run_dir: Path, start_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # what a run wrote after the checkpoint that it goes on from will come again
        self._writer: Any = SummaryWriter(run_dir / "tensorboard", purge_step=start_step + 1)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def picture(self, step: int, image: Block) -> None:
        self._writer.add_image("samples", image, step, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


class _WandB:
    def __init__(self, run_dir: Path, config: TrainConfig) -> None:
        import wandb

        self._wandb: Any = wandb
        path = run_dir / "wandb_id"  # so that a continued run stays one run there
        if not path.exists():
            path.write_text(uuid.uuid4().hex[:8])
        self._run: Any = wandb.init(
            project=PROJECT,
            name=config.exp_name,
            id=path.read_text(),
            resume="allow",
            config=config.as_json(),
            dir=run_dir,
        )

    def scalars(self, step: int, values: dict[str, float]) -> None:
        self._run.log(values, step=step)

    def picture(self, step: int, image: Block) -> None:
        self._run.log({"samples": self._wandb.Image(image)}, step=step)

    def close(self) -> None:
        self._run.finish()


def open_tracker(config: TrainConfig, run_dir: Path, start_step: int) -> Tracker:
    """Whom --report-to names; by default TensorBoard where it is installed.

    Raises ConfigError when the one named is not installed.
    """
    installed = {name: importlib.util.find_spec(name) is not None for name in ("tensorboard", "wandb")}
    kind = config.report_to or ("tensorboard" if installed["tensorboard"] else "none")
    if kind == "none":
        return _Nobody()
    if not installed[kind]:
        raise ConfigError(f"--report-to is {kind!r}, which is not installed: pip install {kind}, or --report-to none")
    return _TensorBoard(run_dir, start_step) if kind == "tensorboard" else _WandB(run_dir, config)
