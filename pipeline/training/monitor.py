"""The progress line, metrics.parquet and the experiment tracker of a training run."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from ...config import TrainConfig
from ..artifacts.images import Block
from ..artifacts.metrics_log import MetricsLog
from ..artifacts.run_folder import RunFolder
from ..runtime.progress import Progress
from .trackers import open_tracker


class TrainingMonitor:
    """Averages the losses of steps, and reads them from the device only every `--log-steps` steps."""

    def __init__(self, config: TrainConfig, run: RunFolder, start_step: int, losses: tuple[str, ...]) -> None:
        self._config = config
        self._terms = losses[1:]  # the first is their weighted sum
        self._names = (*losses, "grad_norm")
        self._log = MetricsLog(run, start_step)
        self._tracker = open_tracker(config, run, start_step)
        self._sums: Tensor | None = None
        self._count, self._waited, self._since = 0, 0.0, time.perf_counter()

    def log_step(self, step: int, values: Tensor, waited: float, bar: Progress) -> None:
        """Record a step.

        Args:
            step: the number of steps taken so far, including this one.
            values: the losses and the gradient norm, on the device.
            waited: seconds that the step waited for data.
            bar: the progress line.
        """
        self._sums = values if self._sums is None else self._sums + values
        self._count += 1
        self._waited += waited
        if step % self._config.log_steps == 0 or step == self._config.max_train_steps:
            self._log_row(step, bar)
        bar.update()

    def _log_row(self, step: int, bar: Progress) -> None:
        assert self._sums is not None
        means = dict(zip(self._names, (self._sums / self._count).tolist(), strict=True))
        seconds = time.perf_counter() - self._since
        row = means | {
            "images_per_s": self._count * self._config.batch_size / seconds,
            "data_wait": self._waited / seconds,
            "seconds": seconds,
        }
        self._log.add({"step": step, **row})
        self._tracker.log_scalars(step, row)
        losses = ", ".join(f"{name.removesuffix('_loss')} {row[name]:.4f}" for name in self._terms)
        memory = f", {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB" if torch.cuda.is_available() else ""
        bar.note(f"{losses}, {row['images_per_s']:.1f} images/s, data wait {row['data_wait']:.1%}{memory}")
        self._sums, self._count, self._waited, self._since = None, 0, 0.0, time.perf_counter()

    def log_image(self, step: int, image: Block) -> None:
        """Pass a grid of generated images to the tracker."""
        self._tracker.log_image(step, image)

    def write(self) -> None:
        """Write the rows to disk."""
        self._log.write()

    def close(self) -> None:
        """Write the rows to disk and close the tracker."""
        self._log.write()
        self._tracker.close()
