"""Blocks of images on disk, so that an interrupted run goes on where it was."""

from __future__ import annotations

import json
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
from ...errors import ConfigError
from ...stores.files import atomic_write, write_json
from ..artifacts.images import Block, save_grid, write_npz
from .sampler import Sampler

GRID_IMAGES = 64
GRID_COLUMNS = 8


class SampleBlocks:
    """The folder `<out>.partial` of finished blocks."""

    def __init__(self, config: SampleConfig, settings: dict[str, Any], out: Path) -> None:
        self._out, self.folder = out, out.with_suffix(".partial")
        self.folder.mkdir(parents=True, exist_ok=True)
        size = config.per_proc_batch_size
        wanted = settings | {"per_proc_batch_size": size}
        path = self.folder / "settings.json"
        if any(self.folder.glob("*.npy")) and json.loads(path.read_text()) != wanted:
            raise ConfigError(
                f"{self.folder} holds blocks of other settings: use those to go on, name another --out, or delete it"
            )
        write_json(path, wanted)
        count = config.num_fid_samples
        self.all = [range(start, min(start + size, count)) for start in range(0, count, size)]

    def missing(self, blocks: Sequence[range]) -> list[range]:
        """Those that are not on disk."""
        return [block for block in blocks if not block_path(self.folder, block).exists()]

    def assemble(self, labels: npt.NDArray[np.int64], grid: Path) -> None:
        """Stream the blocks into the .npz, write the grid, drop the blocks."""
        paths = [block_path(self.folder, block) for block in self.all]
        write_npz(self._out, map(np.load, paths), labels, np.load(paths[0]).shape[1])
        shown: list[Block] = []
        for path, block in zip(paths, self.all, strict=True):
            shown.append(np.load(path))
            if block.stop >= GRID_IMAGES:
                break
        save_grid(grid, np.concatenate(shown)[:GRID_IMAGES], GRID_COLUMNS)
        shutil.rmtree(self.folder)


def block_path(folder: Path, block: range) -> Path:
    """Where a block's images go."""
    return folder / f"{block.start:08d}.npy"


def _write_block(folder: Path, block: range, images: Block) -> None:
    """Write a block whole or not at all."""
    with atomic_write(block_path(folder, block)) as temporary, temporary.open("wb") as file:
        np.save(file, images)


def make_blocks(
    sampler: Sampler, folder: Path, todo: Sequence[range], device: torch.device, done: Callable[[int], object]
) -> None:
    """Make blocks and write them into the folder; `done` is called with the number of images of each.

    On a GPU a block is decoded, copied and written while the next one is denoised.
    """
    with _finishing(device) as submit:
        for block in todo:

            def finish(latents: Tensor, block: range = block) -> None:
                _write_block(folder, block, sampler.decode(latents))
                done(len(block))

            submit(sampler.latents(block), finish)


@contextmanager
def _finishing(device: torch.device) -> Iterator[Callable[[Tensor, Callable[[Tensor], None]], None]]:
    """A function that runs `finish(latents)`: at once, or on a GPU in a thread with a stream of its own.

    At most one block waits, so that memory holds no more than two. On a CPU the denoising has all cores already.
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
