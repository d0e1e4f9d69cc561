"""Pictures of what a run has learned so far, by its averaged weights: the same noise and labels every time."""

from __future__ import annotations

from pathlib import Path

import torch

from ...config import SampleConfig
from ..artifacts.checkpoints import TrainedModel
from ..artifacts.images import Block, save_grid
from ..sampling.sampler import Sampler

IMAGES, COLUMNS = 16, 4


class SampleGrid:
    """Draws into `<run>/samples/step-<step>.png`; 50 Euler steps and a guidance scale of 4, as REPA's trainer does.

    Everything random comes from generators of its own, so that training does not notice.
    """

    def __init__(self, trained: TrainedModel, run_dir: Path, device: torch.device) -> None:
        config = SampleConfig(
            checkpoint=str(run_dir),
            num_fid_samples=IMAGES,
            cfg_scale=4.0 if trained.model.config.class_dropout_prob > 0 else 1.0,
            labels="balanced",
            precision=trained.config.mixed_precision,
        )
        self._sampler = Sampler(config, trained, device)
        self._folder = run_dir / "samples"

    def draw(self, step: int) -> Block:
        """The picture [H, W, 3], which is also written."""
        self._folder.mkdir(parents=True, exist_ok=True)
        return save_grid(
            self._folder / f"step-{step:07d}.png", self._sampler.decode(self._sampler.latents(range(IMAGES))), COLUMNS
        )
