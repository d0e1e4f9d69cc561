"""`repa-pipe sample`: generate images from a checkpoint, independent of batch size, ranks and interruptions.

Finished blocks are kept in `<name>.partial` until the .npz is complete. Images that exist with the same settings are
not generated again.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from ..config import SampleConfig
from .artifacts.checkpoints import load_model, resolve_checkpoint
from .artifacts.images import write_png_folder
from .artifacts.sample_files import SampleFiles, SampleResult, files_of, finished_samples, sample_settings
from .runtime.device import choose_device
from .runtime.distributed import DistributedContext, init_distributed
from .runtime.progress import progress
from .sampling.blocks import SampleBlocks, make_blocks
from .sampling.on_ray import make_blocks_on_ray
from .sampling.sampler import Sampler

__all__ = ["SampleResult", "run"]

logger = logging.getLogger(__name__)


def run(config: SampleConfig) -> SampleResult:
    """Generate images and write them as .npz, with a grid as PNG and the settings as JSON.

    Raises:
        ConfigError, CheckpointError, WeightsError: the settings, the checkpoint or the VAE are unusable.
    """
    device = choose_device("cpu" if config.uses_ray else config.device)  # on Ray, the actors choose theirs
    checkpoint = resolve_checkpoint(config.checkpoint)
    files = files_of(config, checkpoint)
    with init_distributed(device) as ranks:
        result = finished_samples(config)
        if result:
            logger.info("%s already exists with the same settings; skipping", files.npz)
        else:
            result = _generate(config, checkpoint, files, device, ranks)
        if config.png_folder and ranks.is_first:
            write_png_folder(files.npz, Path(config.png_folder))
    return result


def _generate(
    config: SampleConfig, checkpoint: Path, files: SampleFiles, device: torch.device, ranks: DistributedContext
) -> SampleResult:
    start = time.monotonic()
    settings = sample_settings(config, checkpoint)
    blocks = SampleBlocks(config, settings, files)
    mine = blocks.all[ranks.rank :: ranks.world_size]
    todo = blocks.missing(mine)
    done = sum(map(len, mine)) - sum(map(len, todo))
    if done:
        logger.info("resuming: %s images already exist", f"{done:,}")
    labels: npt.NDArray[np.int64]
    with progress("sample", sum(map(len, mine)), "images", done) as bar:
        if config.uses_ray:
            labels, step = make_blocks_on_ray(config, checkpoint, blocks.folder, todo, bar.update)
        else:
            trained = load_model(checkpoint, config.ema)
            sampler = Sampler(config, trained, device)
            make_blocks(sampler, blocks.folder, todo, device, bar.update)
            labels, step = sampler.all_labels(), trained.step
    ranks.barrier()
    seconds = round(time.monotonic() - start, 1)
    result = SampleResult(str(files.npz), str(files.grid), len(labels), step, seconds)
    if ranks.is_first:
        blocks.assemble(labels)
        files.write_record(config, settings, result)
    ranks.barrier()
    return result
