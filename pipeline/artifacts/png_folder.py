"""Generated images as a folder of PNG files, which holds the images of one .npz and nothing else."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ...errors import ConfigError
from ...stores.files import TEMPORARY, atomic_write
from .images import Block, open_images

BATCH = 256  # images in memory


def check_png_folder(folder: Path, count: int) -> None:
    """Raise ConfigError if a folder holds anything but the first `count` images."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ConfigError(f"--png-folder is {str(folder)!r}, which is a file: expected a folder")
    expected = {_name(number) for number in range(count)}
    others = sorted(path.name for path in folder.iterdir() if path.name not in expected and TEMPORARY not in path.name)
    if others:
        more = f" and {len(others) - 1:,} more" if len(others) > 1 else ""
        raise ConfigError(
            f"--png-folder {folder} holds {others[0]}{more}, not part of these {count:,} images: delete the folder or "
            "specify another one"
        )


def write_png_folder(npz: Path, folder: Path) -> None:
    """Write the images of an .npz as `000000.png`, `000001.png`, …; files that hold the same images are kept.

    Raises:
        ConfigError: the folder holds other files, or files of other images.
    """
    images = open_images(str(npz), BATCH)
    check_png_folder(folder, images.count)
    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor() as pool:
        done = 0
        for block in images.blocks:
            list(pool.map(_write, (folder / _name(number) for number in range(done, done + len(block))), block))
            done += len(block)


def _name(number: int) -> str:
    return f"{number:06d}.png"


def _write(path: Path, image: Block) -> None:
    from PIL import Image

    if path.exists():
        _require_same(path, image)
        return
    with atomic_write(path) as temporary:
        Image.fromarray(image).save(temporary, format="png")


def _require_same(path: Path, image: Block) -> None:
    from PIL import Image

    try:
        with Image.open(path) as found:
            is_same = np.array_equal(np.asarray(found), image)
    except OSError:
        is_same = False
    if not is_same:
        raise ConfigError(
            f"{path} holds another image than the one generated: delete the folder or specify another --png-folder"
        )
