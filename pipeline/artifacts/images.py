"""Images on disk as blocks of uint8 `[B, H, W, 3]`: .npz files as in the ADM suite, folders, and stores."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

from ...config import EvaluateConfig
from ...errors import BadImageError, ConfigError, SourceError, StoreError
from ...sources import Index, Record, Source, decode_crop, open_recorded, open_source, records_of
from ...stores import Store, open_store
from ...stores.files import atomic_write

Block = npt.NDArray[np.uint8]  # [B, H, W, 3]


@dataclass(frozen=True, slots=True)
class Images:
    """A set of images of one size."""

    description: str
    count: int
    side: int
    blocks: Iterable[Block]
    content: Callable[[], str]  # a digest: the same for the same images in the same order


def open_images(path: str, batch_size: int, source: str | None = None) -> Images:
    """Open an .npz, a folder of images, or a store.

    Args:
        path: the .npz, folder or store.
        batch_size: images per block.
        source: location of the images of a store. Default: the location recorded in the store.

    Raises:
        ConfigError, SourceError, StoreError: there are no such images at `path`.
    """
    given = Path(path)
    if given.suffix == ".npz":
        return _npz_images(given, batch_size)
    if (given / "zarr.json").exists():
        return _store_images(open_store(given), batch_size, source)
    return _folder_images(path, batch_size)


def open_reference(config: EvaluateConfig) -> Images | None:
    """Open the images of a reference, or return None if it is a statistics file.

    Raises:
        ConfigError, SourceError, StoreError: there is no such reference.
    """
    path = Path(config.reference)
    if path.suffix == ".npz" and path.exists() and read_npz_header(path) is None:
        return None
    return open_images(config.reference, config.batch_size, config.source)


def read_npz_header(path: Path) -> tuple[int, ...] | None:
    """Return the shape of `arr_0`, or None if the file has no such array, as a statistics file.

    Raises:
        ConfigError: the file cannot be read, or `arr_0` does not hold images.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if "arr_0.npy" not in archive.namelist():
                return None
            with archive.open("arr_0.npy") as member:
                return _read_header(member, path)
    except (OSError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{path} cannot be read as an .npz ({error})") from error


def _read_header(member: IO[bytes], path: Path) -> tuple[int, ...]:
    version = npy.read_magic(member)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran, dtype = read(member)
    if len(shape) != 4 or shape[1] != shape[2] or shape[3] != 3 or dtype != np.uint8 or fortran:
        raise ConfigError(f"{path}: arr_0 is {shape} {dtype}, expected images: uint8 [N, side, side, 3]")
    return tuple(int(size) for size in shape)


def _npz_images(path: Path, batch_size: int) -> Images:
    shape = read_npz_header(path)
    if shape is None:
        raise ConfigError(f"{path} has no array 'arr_0', expected images: uint8 [N, side, side, 3]")

    def blocks() -> Iterator[Block]:
        with zipfile.ZipFile(path) as archive, archive.open("arr_0.npy") as member:
            _read_header(member, path)
            for start in range(0, shape[0], batch_size):
                count = min(batch_size, shape[0] - start)
                data = member.read(count * shape[1] * shape[2] * 3)
                yield np.frombuffer(data, np.uint8).reshape(count, *shape[1:])

    def content() -> str:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    return Images(str(path), shape[0], shape[1], blocks(), content)


def _folder_images(path: str, batch_size: int) -> Images:
    source = open_source(path)
    index = source.index()
    first = next(iter(records_of(index.slice(0, 1))))
    side = _side(source.read(first), path)

    def content() -> str:
        digest, records = hashlib.sha256(), list(records_of(index))
        with ThreadPoolExecutor() as pool:
            for start in range(0, len(records), batch_size):
                for data in pool.map(source.read, records[start : start + batch_size]):
                    digest.update(hashlib.sha256(data).digest())
        return digest.hexdigest()

    return Images(path, len(index), side, _decoded(source, index, side, batch_size), content)


def _side(data: bytes, path: str) -> int:
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        if image.width != image.height:
            raise ConfigError(f"{path} holds images of {image.width} x {image.height} pixels, expected square images")
        return image.width


def _store_images(store: Store, batch_size: int, source: str | None) -> Images:
    try:
        opened = open_recorded(store.manifest.source, source)
    except SourceError as error:
        raise StoreError(
            f"{store.location}: the images that it was encoded from cannot be read ({error}): pass their location as "
            "--source"
        ) from error
    groups = [name for name in store.group_names() if not store.group(name).missing_shards()]
    index = store.samples.take(store.valid_indices(groups))
    side = store.manifest.resolution

    def content() -> str:
        """Return a digest of the checksums that were recorded when the images were encoded."""
        digest = hashlib.sha256("\n".join([store.manifest.crop, *index["key"].to_pylist()]).encode())
        for commit in store.group(groups[0]).commits.values() if groups else ():
            digest.update(commit.source_crc32c.encode())
        return digest.hexdigest()

    description = f"{store.location} (images from {opened.path})"
    return Images(description, len(index), side, _decoded(opened, index, side, batch_size), content)


def _decoded(source: Source, index: Index, side: int, batch_size: int) -> Iterator[Block]:
    records = list(records_of(index))

    def decode(record: Record) -> Block:
        try:
            return decode_crop(source.read(record), side)
        except BadImageError as error:
            raise SourceError(f"{record.key} cannot be decoded: {error}") from error

    with ThreadPoolExecutor() as pool:
        for start in range(0, len(records), batch_size):
            yield np.stack(list(pool.map(decode, records[start : start + batch_size])))


def write_npz(path: Path, images: Iterable[Block], labels: npt.NDArray[np.int64], side: int) -> None:
    """Stream images into an .npz for the ADM suite: `arr_0` uint8 [N, side, side, 3], `arr_1` labels."""
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(labels), side, side, 3)}
    stamp = (1980, 1, 1, 0, 0, 0)  # fixed, so that the same images give the same file
    with atomic_write(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        with archive.open(zipfile.ZipInfo("arr_0.npy", stamp), "w", force_zip64=True) as member:
            npy.write_array_header_1_0(member, header)
            for block in images:
                member.write(np.ascontiguousarray(block).data)
        with archive.open(zipfile.ZipInfo("arr_1.npy", stamp), "w") as member:
            npy.write_array(member, labels, version=(1, 0))


def write_png_folder(npz: Path, folder: Path) -> None:
    """Write the images of an .npz as `000000.png`, `000001.png`, …; existing files are skipped."""
    from PIL import Image

    def write(number: int, image: Block) -> None:
        path = folder / f"{number:06d}.png"
        if not path.exists():
            with atomic_write(path) as temporary:
                Image.fromarray(image).save(temporary, format="png")

    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor() as pool:
        done = 0
        for block in open_images(str(npz), 256).blocks:
            list(pool.map(write, range(done, done + len(block)), block))
            done += len(block)


def save_grid(path: Path, images: Block, columns: int) -> Block:
    """Write images as one grid `[H, W, 3]`, row by row, and return it."""
    from PIL import Image

    rows = -(-len(images) // columns)
    side = images.shape[1]
    canvas = np.full((rows * columns, side, side, 3), 255, dtype=np.uint8)
    canvas[: len(images)] = images
    grid = canvas.reshape(rows, columns, side, side, 3).transpose(0, 2, 1, 3, 4).reshape(rows * side, columns * side, 3)
    Image.fromarray(grid).save(path)
    return grid
