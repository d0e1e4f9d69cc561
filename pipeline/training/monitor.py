"""The progress line, metrics.parquet and the experiment tracker of a training run."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from ...config import TrainConfig
from ..artifacts.images import Block
from ..artifacts.metrics_log import EVALUATION, MetricsLog
from ..artifacts.run_folder import RunFolder
from ..runtime.device import peak_memory_gib
from ..runtime.progress import Progress
from ..runtime.system_metrics import SystemMetrics
from .evaluation import Found, OnlineEvaluation, steps_to_evaluate, until_finished
from .schedule import is_due, learning_rate
from .session import SessionRecorder
from .trackers.opening import open_tracker

logger = logging.getLogger(__name__)


class TrainingMonitor:
    """Averages the losses of steps, and reads them from the device only every `--log-steps` steps.

    Args:
        config: the settings of the run.
        run: the run folder.
        start_step: the number of steps that were taken before.
        losses: names of the losses, the weighted sum first.
        device: the device of the model.
        session: recorder of this session, if any.
        mfu_per_image_rate: factor from images per second to MFU; None where it is unknown.
    """

    def __init__(  # noqa: PLR0917 - called once
        self,
        config: TrainConfig,
        run: RunFolder,
        start_step: int,
        losses: tuple[str, ...],
        device: torch.device,
        session: SessionRecorder | None,
        mfu_per_image_rate: float | None,
    ) -> None:
        self._config, self._device = config, device
        self._session, self._mfu_per_image_rate = session, mfu_per_image_rate
        self._terms = losses[1:]  # the first is their weighted sum
        self._names = (*losses, "grad_norm")
        self._log = MetricsLog(run, start_step)
        self._tracker = open_tracker(config, run, start_step)
        self._evaluation = OnlineEvaluation(config, run, steps_to_evaluate(config, run, self._log))
        self._system = SystemMetrics(device)
        self._sums: Tensor | None = None
        self._count, self._waited, self._since = 0, 0.0, time.perf_counter()

    def log_step(self, step: int, values: Tensor, waited: float, bar: Progress, validated: dict[str, float]) -> None:
        """Record a step; a step with validation losses ends a row.

        Args:
            step: the number of steps taken so far, including this one.
            values: the losses and the gradient norm, on the device.
            waited: seconds that the step waited for data.
            bar: the progress line.
            validated: the validation losses of this step, if any.
        """
        self._sums = values if self._sums is None else self._sums + values
        self._count += 1
        self._waited += waited
        if self._session:
            self._session.step = step
        if is_due(self._config.log_steps, step, self._config.max_train_steps) or validated:
            self._log_row(step, bar, validated)
        bar.update()

    def _log_row(self, step: int, bar: Progress, validated: dict[str, float]) -> None:
        assert self._sums is not None
        means = dict(zip(self._names, (self._sums / self._count).tolist(), strict=True))
        seconds = time.perf_counter() - self._since
        rate = self._count * self._config.batch_size / seconds
        row = means | {
            "learning_rate": learning_rate(self._config, step - 1),
            **validated,
            "images_per_s": rate,
            "data_wait": self._waited / seconds,
            "seconds": seconds,
            "memory_gib": peak_memory_gib(self._device),
            **self._system.read(),
        }
        if self._mfu_per_image_rate is not None:
            row["mfu"] = rate * self._mfu_per_image_rate
        self._log.add({"step": step, **row})
        self._tracker.log_scalars(step, row | self._amend(self._evaluation.finished()))
        if self._session:
            self._session.update()
        losses = ", ".join(f"{name.removesuffix('_loss')} {row[name]:.4f}" for name in (*self._terms, *validated))
        speed = f"{rate:.1f} images/s, data wait {row['data_wait']:.1%}"
        bar.note(f"{losses}, {speed}, {row['memory_gib']:.1f} GiB")
        self._sums, self._count, self._waited, self._since = None, 0, 0.0, time.perf_counter()

    def _amend(self, found: Iterable[Found]) -> dict[str, float]:
        """Add metrics to the rows of their steps; return those of the last one, with its step, for the tracker."""
        last: dict[str, float] = {}
        for step, values in found:
            self._log.amend(step, values)
            last = {f"{EVALUATION}step": step, **values} if values else last
        return last

    @property
    def steps_to_evaluate(self) -> list[int]:
        """Steps whose checkpoints are still needed."""
        return self._evaluation.pending

    def evaluate(self, step: int) -> None:
        """Evaluate the checkpoint of a step in another process."""
        if step not in self._evaluation.pending:
            self._evaluation.add(step)

    def finish_evaluations(self, step: int, stop: Callable[[], bool]) -> None:
        """Wait for the evaluations after the last step, unless `stop` returns true."""
        for found in until_finished(self._evaluation, stop):
            values = self._amend([found])
            self._log.write(with_copy=True)
            if values:
                self._tracker.log_scalars(step, values)

    def log_image(self, step: int, image: Block) -> None:
        """Pass a grid of generated images to the tracker."""
        self._tracker.log_image(step, image)

    def write(self) -> None:
        """Write the rows to disk, with a copy for the checkpoint that is about to be written."""
        self._log.write(with_copy=True)

    def close(self) -> None:
        """Write the rows to disk and close the tracker. A full disk is only a warning: it may be the error itself.

        An evaluation that still runs is stopped.
        """
        self._evaluation.close()
        try:
            self._log.write()
        except OSError as error:
            logger.warning("rows of the last steps are not in metrics.parquet (%s)", error)
        self._tracker.close()
