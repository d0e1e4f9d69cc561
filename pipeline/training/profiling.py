"""A torch.profiler trace of a few training steps, for https://ui.perfetto.dev or chrome://tracing."""

from __future__ import annotations

import gzip
import logging
import tempfile
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from ...stores.files import atomic_write_bytes
from ..artifacts.run_folder import RunFolder

logger = logging.getLogger(__name__)


class StepProfiler:
    """Traces the steps of a range, and writes the trace when the last of them, or the run, has ended.

    Args:
        steps: the steps, counted from 0; may be empty.
        run: the run folder.
        device: the device of the model.
    """

    def __init__(self, steps: range, run: RunFolder, device: torch.device) -> None:
        self._steps, self._device = steps, device
        self._path = run.profile(steps.start, steps.stop)
        self._profile: profile | None = None

    def before(self, step: int) -> None:
        """Start, or mark the beginning of a step; call it before every step."""
        if step not in self._steps:
            self.close()
        elif self._profile is None:
            gpu = [ProfilerActivity.CUDA] if self._device.type == "cuda" else []
            self._profile = profile(
                activities=[ProfilerActivity.CPU, *gpu], acc_events=True
            )  # torch 2.10 warns without
            self._profile.start()
        else:
            self._profile.step()

    def close(self) -> None:
        """Write the trace, if one was started."""
        if self._profile is None:
            return
        traced, self._profile = self._profile, None
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # the trace includes the kernels of the last step
        traced.stop()
        with tempfile.TemporaryDirectory() as folder:
            plain = Path(folder) / "trace.json"
            traced.export_chrome_trace(str(plain))
            atomic_write_bytes(self._path, gzip.compress(plain.read_bytes()))
        logger.info("trace written to %s; open it in https://ui.perfetto.dev", self._path)
