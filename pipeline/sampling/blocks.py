"""Blocks of images on disk, from which an interrupted run resumes."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
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
from ...stores.files import atomic_write, write_json
from ..artifacts.images import Block, save_grid, write_npz
from ..artifacts.sample_files import GRID_COLUMNS, GRID_IMAGES, SampleFiles, are_same_settings
from .sampler import Sampler


class SampleBlocks:
    """The folder `<name>.partial` of finished blocks.

    Raises:
        ConfigError: the folder holds blocks that were generated with other settings.
    """

    def __init__(self, config: SampleConfig, settings: dict[str, Any], files: SampleFiles, checkpoint: Path) -> None:
        self._files, self.folder = files, files.blocks
        self.folder.mkdir(parents=True, exist_ok=True)
        size = config.per_proc_batch_size
        wanted = settings | {"per_proc_batch_size": size}
        path = files.settings_of_blocks
        if any(self.folder.glob("*.npy")) and not are_same_settings(read_json(path), wanted, checkpoint):
            raise ConfigError(
                f"{self.folder} holds blocks generated with other settings: use the same settings to resume, choose "
                "another --out, or delete the folder"
            )
        write_json(path, wanted)
        count = config.num_fid_samples
        self.all = [range(start, min(start + size, count)) for start in range(0, count, size)]

    def missing(self, blocks: Sequence[range]) -> list[range]:
        """Return the blocks that are not on disk yet."""
        return [block for block in blocks if not block_path(self.folder, block).exists()]

    def assemble(self, labels: npt.NDArray[np.int64]) -> None:
        """Stream the blocks into the .npz, write the grid, and delete the blocks."""
        paths = [block_path(self.folder, block) for block in self.all]
        for path in self._files.all_metrics():
            path.unlink()  # of the images that are replaced
        write_npz(self._files.npz, map(np.load, paths), labels, np.load(paths[0]).shape[1])
        shown: list[Block] = []
        for path, block in zip(paths, self.all, strict=True):
            shown.append(np.load(path))
            if block.stop >= GRID_IMAGES:
                break
        save_grid(self._files.grid, np.concatenate(shown)[:GRID_IMAGES], GRID_COLUMNS)
        shutil.rmtree(self.folder)


def block_path(folder: Path, block: range) -> Path:
    """Return the file of a block."""
    return folder / f"{block.start:08d}.npy"


def _write_block(folder: Path, block: range, images: Block) -> None:
    with atomic_write(block_path(folder, block)) as temporary, temporary.open("wb") as file:
        np.save(file, images)


def make_blocks(
    sampler: Sampler,
    folder: Path,
    todo: Sequence[range],
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
                    _write_block(folder, block, sampler.decode(latents))
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
