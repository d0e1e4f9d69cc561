"""`repa-pipe sample`: generate images from a checkpoint, independent of batch size, ranks and interruptions.

Finished blocks are kept in `<name>.partial` until the .npz is complete. Images that exist with the same settings are
not generated again, which is found without torch.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..config import SampleConfig
from ..models.rae_files import check_rae_decoder
from ..models.vae_files import check_vae
from ..models.weight_files import require_weights_file
from .artifacts.checkpoints import load_model, resolve_checkpoint, unrecorded
from .artifacts.hub_models import with_pinned_checkpoints
from .artifacts.png_folder import check_png_folder, write_png_folder
from .artifacts.sample_files import SampleFiles, SampleResult, files_of, finished_samples, sample_settings
from .runtime.distributed import ranks_of_environment
from .runtime.lease import lease
from .runtime.signals import stop_requests

if TYPE_CHECKING:
    import torch

    from .runtime.work_group import WorkGroup

__all__ = ["SampleResult", "run"]

logger = logging.getLogger(__name__)

STOP_S = 10.0  # for the current block after a signal; torchrun and Slurm kill after 30 s


def run(config: SampleConfig) -> SampleResult:
    """Generate images and write them as .npz, with a grid as PNG and the settings as JSON.

    Raises:
        ConfigError, CheckpointError, WeightsError: the settings, the checkpoint or the VAE are unusable.
    """
    config = with_pinned_checkpoints(config)
    checkpoint = resolve_checkpoint(config.checkpoint)
    if config.png_folder:
        check_png_folder(Path(config.png_folder), config.num_fid_samples)
    files = files_of(config, checkpoint)
    result = finished_samples(config)
    if result:
        logger.info("%s already exists with the same settings; skipping", files.npz)
    else:
        if config.vae is not None and not config.uses_ray:  # on Ray, it needs to exist only on the nodes
            check_vae(config.vae)
        if config.decoder is not None and not config.uses_ray:
            check_rae_decoder(config.decoder)
        if config.latents_stats is not None and not config.uses_ray:
            require_weights_file(Path(config.latents_stats))
        result = _generate(config, checkpoint, files)
    if config.png_folder and ranks_of_environment().is_first:
        write_png_folder(files.npz, Path(config.png_folder))
    return result


@contextmanager
def _owned(files: SampleFiles) -> Iterator[None]:
    """Own the images until the block ends: the first rank holds their lease. Others wait for it where they join it."""
    if not ranks_of_environment().is_first:
        yield
        return
    with lease(files.npz.parent, files.npz.stem):
        files.remove_leftovers()
        yield


def _generate(config: SampleConfig, checkpoint: Path, files: SampleFiles) -> SampleResult:
    from .runtime.device import choose_device
    from .runtime.work_group import work_group
    from .sampling.blocks import SampleBlocks

    start = time.monotonic()
    device = choose_device("cpu" if config.uses_ray else config.device)  # on Ray, the actors choose theirs
    with stop_requests(STOP_S) as is_stopped, work_group(is_stopped) as ranks, _owned(files):
        settings = sample_settings(config, checkpoint)
        blocks = SampleBlocks(config, settings, files, checkpoint)
        todo = [blocks.all[number] for number in ranks.share(blocks.missing)]
        done = config.num_fid_samples - sum(map(len, todo))
        if done:
            logger.info("resuming: %s images already exist", f"{done:,}")
        with ranks.progress("sample", config.num_fid_samples, "images", done) as on_images:
            labels, step = _make_blocks(config, checkpoint, blocks.folder, todo, device, ranks, on_images)
        result = SampleResult(str(files.npz), str(files.grid), len(labels), step, round(time.monotonic() - start, 1))
        if ranks.is_first:
            blocks.assemble(labels)
            files.write_record(config, settings, result)
            shutil.rmtree(blocks.folder)
    return result


def _make_blocks(  # noqa: PLR0917 - called once
    config: SampleConfig,
    checkpoint: Path,
    folder: Path,
    todo: Sequence[range],
    device: torch.device,
    ranks: WorkGroup,
    on_images: Callable[[int], object],
) -> tuple[npt.NDArray[np.int64], int]:
    """Generate blocks, here or on Ray; return the labels of all images and the checkpoint's step."""
    if config.uses_ray:
        from .sampling.on_ray import make_blocks_on_ray

        return make_blocks_on_ray(config, checkpoint, folder, todo, on_images, ranks.check)
    from .runtime.device import warn_if_emulated
    from .sampling.blocks import make_blocks
    from .sampling.sampler import Sampler

    warn_if_emulated(config.precision, device)
    trained = load_model(checkpoint, config.ema, unrecorded(config))
    sampler = Sampler(config, trained, device)
    make_blocks(sampler, folder, ranks.divide(todo), device, on_images)
    return sampler.all_labels(), trained.step
