"""Experiment trackers: TensorBoard, Weights & Biases, or none. They do not replace the files in the run folder.

A tracker never ends a run, nor delays its end for long: one that raises is switched off with a warning.
"""

from __future__ import annotations

import importlib.util
import logging
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from ...config import TrainConfig
from ...errors import ConfigError, first_line
from ..artifacts.images import Block
from ..artifacts.run_folder import RunFolder

logger = logging.getLogger(__name__)

PROJECT = "repa-pipe"
WANDB_START_S = 20.0  # its own limit is 90 s; a start takes a few seconds
WANDB_END_S = 60.0  # for what is still to be uploaded; without a network it would try for days


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
            settings=wandb.Settings(init_timeout=WANDB_START_S),
        )

    def log_scalars(self, step: int, values: dict[str, float]) -> None:
        self._run.log(values, step=step)

    def log_image(self, step: int, image: Block) -> None:
        self._run.log({"samples": self._wandb.Image(image)}, step=step)

    def close(self) -> None:
        errors: list[Exception] = [
            TimeoutError(f"no end of the upload in {WANDB_END_S:g} s: 'wandb sync' uploads the rest")
        ]

        def finish() -> None:
            try:
                self._run.finish()
                errors.clear()
            except Exception as error:
                errors[:] = [error]

        thread = threading.Thread(target=finish, name="W&B upload", daemon=True)
        thread.start()
        thread.join(WANDB_END_S)
        if errors:
            raise errors[0]


class _Guarded:
    """A tracker that is replaced by none when it raises, with one warning."""

    def __init__(self, name: str, remedy: str, start: Callable[[], Tracker]) -> None:
        self._name, self._remedy = name, remedy
        self._tracker: Tracker = _NoTracker()
        with self._switched_off_by_error():
            self._tracker = start()

    @contextmanager
    def _switched_off_by_error(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._tracker = _NoTracker()
            logger.warning(
                "%s is switched off (%s): the run continues, and metrics.parquet has all rows%s",
                self._name,
                first_line(error),
                self._remedy,
            )

    def log_scalars(self, step: int, values: dict[str, float]) -> None:
        with self._switched_off_by_error():
            self._tracker.log_scalars(step, values)

    def log_image(self, step: int, image: Block) -> None:
        with self._switched_off_by_error():
            self._tracker.log_image(step, image)

    def close(self) -> None:
        with self._switched_off_by_error():
            self._tracker.close()


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
    if kind == "tensorboard":
        return _Guarded("TensorBoard", "", lambda: _TensorBoard(run, start_step))
    remedy = (
        "; without a network or an API key, WANDB_MODE=offline logs to the run folder and 'wandb sync' uploads later"
    )
    return _Guarded("W&B", remedy, lambda: _WandB(run, config))
