"""Blocks of images on disk, from which an interrupted run resumes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...config import SampleConfig
from ...converter import read_json
from ...errors import ConfigError, NonFiniteError
from ...stores.files import write_json
from ..artifacts.images import Block, save_grid, write_npz
from ..artifacts.sample_files import GRID_COLUMNS, GRID_IMAGES, SampleFiles, are_same_settings
from .block_file import block_path, read_block, write_block
from .sampler import Sampler

logger = logging.getLogger(__name__)


class SampleBlocks:
    """The folder `<name>.partial` of finished blocks. The methods are for the first rank alone."""

    def __init__(self, config: SampleConfig, settings: dict[str, Any], files: SampleFiles, checkpoint: Path) -> None:
        self._files, self.folder, self._checkpoint = files, files.blocks, checkpoint
        size, count = config.per_proc_batch_size, config.num_fid_samples
        self._settings = settings | {"per_proc_batch_size": size}
        self.all = [range(start, min(start + size, count)) for start in range(0, count, size)]

    def missing(self) -> list[int]:
        """Return the numbers of the blocks to generate; damaged ones are set aside.

        Raises:
            ConfigError: the folder holds blocks that were generated with other settings.
        """
        self._claim_folder()
        unchecked, missing = 0, []
        for number, block in enumerate(self.all):
            if not block_path(self.folder, block).exists():
                missing.append(number)
                continue
            try:
                unchecked += not read_block(self.folder, block)[1]
            except ConfigError as error:
                missing.append(number)
                logger.warning("%s; it is generated again and the file kept as %s", error, self._set_aside(block))
        if unchecked:
            logger.info(
                "%d of %d blocks were written by an earlier version, without checksums; they are used as they are",
                unchecked,
                len(self.all),
            )
        return missing

    def _claim_folder(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        path, wanted = self._files.settings_of_blocks, self._settings
        if any(self.folder.glob("*.npy")) and not are_same_settings(read_json(path), wanted, self._checkpoint):
            raise ConfigError(
                f"{self.folder} holds blocks generated with other settings: use the same settings to resume, choose "
                "another --out, or delete the folder"
            )
        write_json(path, self._settings)

    def assemble(self, labels: npt.NDArray[np.int64]) -> None:
        """Stream the blocks into the .npz, and write the grid.

        Raises:
            ConfigError: a block was damaged since it was written; it is set aside.
        """
        for path in (*self._files.all_metrics(), self._files.record):
            path.unlink(missing_ok=True)  # of the images that are replaced
        write_npz(self._files.npz, map(self._read, self.all), labels, self._read(self.all[0]).shape[1])
        shown: list[Block] = []
        for block in self.all:
            shown.append(self._read(block))
            if block.stop >= GRID_IMAGES:
                break
        save_grid(self._files.grid, np.concatenate(shown)[:GRID_IMAGES], GRID_COLUMNS)

    def _read(self, block: range) -> Block:
        try:
            return read_block(self.folder, block)[0]
        except ConfigError as error:
            aside = self._set_aside(block)
            raise ConfigError(
                f"{error}; the file is kept as {aside}: re-run the same command to generate the block again"
            ) from error

    def _set_aside(self, block: range) -> Path:
        """Rename the file of a damaged block, and return its new path, outside of the folder."""
        aside = self._files.damaged_block(block_path(self.folder, block).name)
        block_path(self.folder, block).replace(aside)
        return aside


def make_blocks(
    sampler: Sampler,
    folder: Path,
    todo: Iterable[range],
    device: torch.device,
    on_images: Callable[[int], object] = lambda count: None,
) -> None:
    """Generate blocks and write them to the folder; call `on_images` with the number of images of each.

    On a GPU, a block is decoded, copied and written while the next one is denoised.
    """
    with _finishing(device) as submit:
        for block in todo:

            def finish(latents: Tensor, block: range = block) -> None:
                with _naming(block):
                    write_block(folder, block, sampler.decode(latents))
                on_images(len(block))

            submit(sampler.latents(block), finish)


@contextmanager
def _naming(block: range) -> Iterator[None]:
    """Add the images of a block, and what to do, to the error that some of them are not finite."""
    try:
        yield
    except NonFiniteError as error:
        raise NonFiniteError(
            f"images {block.start} to {block.stop - 1} were not written: {error}. Sample with --precision fp32, or "
            "from an earlier checkpoint"
        ) from error


@contextmanager
def _finishing(device: torch.device) -> Iterator[Callable[[Tensor, Callable[[Tensor], None]], None]]:
    """Yield a function that calls `finish(latents)`: on a CPU immediately, on a GPU in a thread with its own stream.

    At most one block is pending, so memory holds no more than two. On a CPU, denoising already uses all cores.
    """
    if device.type != "cuda":
        yield lambda latents, finish: finish(latents)
        return
    stream = torch.cuda.Stream(device)
    running: list[Future[None]] = []

    def run(latents: Tensor, ready: torch.cuda.Event, finish: Callable[[Tensor], None]) -> None:
        with torch.cuda.device(device), torch.cuda.stream(stream):
            stream.wait_event(ready)
            latents.record_stream(stream)
            finish(latents)

    with ThreadPoolExecutor(1) as pool:

        def submit(latents: Tensor, finish: Callable[[Tensor], None]) -> None:
            ready = torch.cuda.Event()
            ready.record(torch.cuda.current_stream(device))
            while running:
                running.pop().result()
            running.append(pool.submit(run, latents, ready, finish))

        yield submit
        for last in running:
            last.result()
