"""Grids of images generated during training with the EMA weights, always from the same noise and labels."""

from __future__ import annotations

import logging

import torch

from ...config import SampleConfig
from ...errors import NonFiniteError
from ..artifacts.checkpoints import TrainedModel
from ..artifacts.images import Block, save_grid
from ..artifacts.run_folder import RunFolder
from ..sampling.sampler import Sampler

logger = logging.getLogger(__name__)

IMAGES, COLUMNS, STEPS = 16, 4, 50


class SampleGrid:
    """Writes `samples/step-<step>.png` of a run: 50 Euler steps and guidance scale 4, as REPA's trainer does.

    Models with a sampler of their own step its times, 50 or 49.

    All random draws come from separate generators, so training is not affected.
    """

    def __init__(self, trained: TrainedModel, run: RunFolder, device: torch.device, streams_version: int) -> None:
        config = SampleConfig(
            checkpoint=str(run.path),
            num_fid_samples=IMAGES,
            cfg_scale=4.0 if trained.model.config.class_dropout_prob > 0 else 1.0,
            labels="balanced",
            decoder=trained.config.decoder,
            num_steps=STEPS,
            precision=trained.config.mixed_precision or "fp32",
        )
        self._sampler = Sampler(config, trained, device, streams_version)
        self._run = run

    def draw(self, step: int) -> Block | None:
        """Generate the images, write the grid, and return it, uint8 [H, W, 3]; None, with a warning, for NaN."""
        self._run.samples.mkdir(parents=True, exist_ok=True)
        try:
            images = self._sampler.decode(self._sampler.latents(range(IMAGES)))
        except NonFiniteError as error:  # training may recover, and stops by itself if its loss is not finite
            logger.warning("step %d: no grid of images was written: %s", step, error)
            return None
        return save_grid(self._run.sample_grid(step), images, COLUMNS)
