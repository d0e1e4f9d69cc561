"""Images on disk as blocks of uint8 `[B, H, W, 3]`: .npz files as in the ADM suite, folders, and stores."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy
from PIL import Image

from ...config import EvaluateConfig
from ...errors import BadImageError, ConfigError, SourceError, StoreError, first_line
from ...sources import (
    Index,
    Record,
    Source,
    SourceOptions,
    center_crop,
    decode_crop,
    describe_skipped,
    open_recorded,
    open_source,
    records_of,
)
from ...stores import Store, open_store
from ...stores.files import atomic_write
from ...stores.remote import is_url
from ...stores.upload import ROOT
from .plain_images import decode_plain, square_side
from .sample_files import IMAGES_ENDING

logger = logging.getLogger(__name__)

Block = npt.NDArray[np.uint8]  # [B, H, W, 3]
IMAGES_MEMBER = "arr_0.npy"


@dataclass(frozen=True, slots=True)
class Images:
    """A set of images of one size."""

    description: str
    count: int
    side: int
    blocks: Iterable[Block]
    content: Callable[[], str]  # a digest: the same for the same images in the same order


def open_images(
    path: str, batch_size: int, source: str | None = None, resize: int | None = None, source_kind: str | None = None
) -> Images:
    """Open an .npz, a folder of images, or a store.

    Args:
        path: the .npz, folder or store.
        batch_size: images per block.
        source: location of the images of a store. Default: the location recorded in the store.
        resize: scale and crop all images to this side. Default: images of several sizes in a folder are refused.
        source_kind: kind of the source of a store. Default: see `sources.open_recorded`.

    Raises:
        ConfigError, SourceError, StoreError: there are no such images at `path`.
    """
    given = Path(path)
    if given.suffix == IMAGES_ENDING:
        return _resized(_npz_images(given, batch_size), resize)
    if is_url(path) or (given / ROOT).exists():
        return _resized(_store_images(open_store(path), batch_size, source, source_kind), resize)
    return _folder_images(path, batch_size, resize)


def open_reference(config: EvaluateConfig) -> Images | None:
    """Open the images of a reference, or return None if it is a file of statistics alone.

    Raises:
        ConfigError, SourceError, StoreError: there is no such reference.
    """
    path = Path(config.reference)
    if path.suffix == IMAGES_ENDING and path.exists() and read_npz_header(path) is None:
        if holds_statistics(path):
            return None
        found = ", ".join(name.removesuffix(".npy") for name in _members(path))
        raise ConfigError(f"{path} holds {found or 'nothing'}, expected images (arr_0) or statistics (mu and sigma)")
    return open_images(config.reference, config.batch_size, config.source, config.resize, config.source_kind)


def holds_statistics(path: Path) -> bool:
    """Return whether an .npz holds the statistics of features, as ADM's references do, whatever else it holds.

    Raises:
        ConfigError: the file cannot be read.
    """
    return path.suffix == IMAGES_ENDING and path.exists() and {"mu.npy", "sigma.npy"} <= set(_members(path))


def read_npz_header(path: Path) -> tuple[int, ...] | None:
    """Return the shape of `arr_0`, or None if the file has no such array, as a statistics file.

    Raises:
        ConfigError: the file cannot be read, or `arr_0` does not hold images.
    """
    if IMAGES_MEMBER not in _members(path):
        return None
    with _reading(path), zipfile.ZipFile(path) as archive, archive.open(IMAGES_MEMBER) as member:
        return _read_header(member, path)


def _members(path: Path) -> list[str]:
    with _reading(path), zipfile.ZipFile(path) as archive:
        return archive.namelist()


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Raise ConfigError instead of the exceptions of damaged archives."""
    try:
        yield
    except (OSError, EOFError, ValueError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path} cannot be read as an .npz ({first_line(error)})") from error


def _read_header(member: IO[bytes], path: Path) -> tuple[int, ...]:
    version = npy.read_magic(member)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran, dtype = read(member)
    if len(shape) != 4 or shape[1] != shape[2] or shape[3] != 3 or dtype != np.uint8 or fortran:
        raise ConfigError(f"{path}: arr_0 is {shape} {dtype}, expected images: uint8 [N, side, side, 3]")
    if not shape[0]:
        raise ConfigError(f"{path}: arr_0 holds no images, expected at least one")
    return tuple(int(size) for size in shape)


def _npz_images(path: Path, batch_size: int) -> Images:
    shape = read_npz_header(path)
    if shape is None:
        raise ConfigError(f"{path} has no array 'arr_0', expected images: uint8 [N, side, side, 3]")

    def blocks() -> Iterator[Block]:
        with _reading(path), zipfile.ZipFile(path) as archive, archive.open(IMAGES_MEMBER) as member:
            _read_header(member, path)
            for start in range(0, shape[0], batch_size):
                count = min(batch_size, shape[0] - start)
                data = member.read(count * shape[1] * shape[2] * 3)
                yield np.frombuffer(data, np.uint8).reshape(count, *shape[1:])

    def content() -> str:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    return Images(str(path), shape[0], shape[1], blocks(), content)


def _resized(images: Images, side: int | None) -> Images:
    """Return the images scaled to another side, if one is requested."""
    if side is None or side == images.side:
        return images
    blocks = (np.stack([center_crop(Image.fromarray(each), side) for each in block]) for block in images.blocks)
    return dataclasses.replace(
        images, side=side, blocks=blocks, content=lambda: f"{images.content()} resized to {side}"
    )


def _folder_images(path: str, batch_size: int, resize: int | None) -> Images:
    source = open_source(path, options=SourceOptions(unlabeled=True))
    index = source.index()
    if source.skipped:
        logger.info("%s: skipped %s", path, describe_skipped(source.skipped))
    first = next(iter(records_of(index.slice(0, 1))))
    with _naming(source, first):
        side = resize or square_side(source.read(first))

    def decode(data: bytes) -> Block:
        return decode_plain(data, side, resize is not None)

    def content() -> str:
        digest, records = hashlib.sha256(f"resize {resize}".encode()), list(records_of(index))
        with ThreadPoolExecutor() as pool:
            for start in range(0, len(records), batch_size):
                for data in pool.map(source.read, records[start : start + batch_size]):
                    digest.update(hashlib.sha256(data).digest())
        return digest.hexdigest()

    return Images(path, len(index), side, _decoded(source, index, decode, batch_size), content)


def _store_images(store: Store, batch_size: int, source: str | None, source_kind: str | None) -> Images:
    try:
        opened = open_recorded(store.manifest.source, source, source_kind)
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
    blocks = _decoded(opened, index, lambda data: decode_crop(data, side), batch_size)
    return Images(description, len(index), side, blocks, content)


def _decoded(source: Source, index: Index, decode: Callable[[bytes], Block], batch_size: int) -> Iterator[Block]:
    records = list(records_of(index))

    def read(record: Record) -> Block:
        with _naming(source, record):
            return decode(source.read(record))

    with ThreadPoolExecutor() as pool:
        for start in range(0, len(records), batch_size):
            yield np.stack(list(pool.map(read, records[start : start + batch_size])))


@contextmanager
def _naming(source: Source, record: Record) -> Iterator[None]:
    """Raise SourceError with the name of an image instead of BadImageError."""
    try:
        yield
    except BadImageError as error:
        raise SourceError(f"{source.path}: {record.key} cannot be evaluated: {error}") from error


def read_npz_labels(path: Path) -> npt.NDArray[np.int64]:
    """Read the classes [N] of the images in an .npz, `arr_1`.

    Raises:
        ConfigError: the file is not an .npz, cannot be read, or has no class for each image.
    """
    if path.suffix != IMAGES_ENDING:
        raise ConfigError(f"{path} has no classes: expected an .npz with images (arr_0) and their classes (arr_1)")
    shape = read_npz_header(path)
    with _reading(path), np.load(path) as archive:
        labels = archive["arr_1"] if "arr_1" in archive.files else None
    if shape is None or labels is None or labels.shape != shape[:1] or labels.dtype.kind not in "iu":
        found = "none" if labels is None else f"{labels.dtype} {list(labels.shape)}"
        raise ConfigError(f"{path}: expected one class number per image in arr_1, found {found}")
    return np.asarray(labels, np.int64)


def write_npz(path: Path, images: Iterable[Block], labels: npt.NDArray[np.int64], side: int) -> None:
    """Stream images into an .npz for the ADM suite: `arr_0` uint8 [N, side, side, 3], `arr_1` labels."""
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(labels), side, side, 3)}
    stamp = (1980, 1, 1, 0, 0, 0)  # fixed, so that the same images give the same file
    with atomic_write(path, durable=True) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        with archive.open(zipfile.ZipInfo(IMAGES_MEMBER, stamp), "w", force_zip64=True) as member:
            npy.write_array_header_1_0(member, header)
            for block in images:
                member.write(np.ascontiguousarray(block).data)
        with archive.open(zipfile.ZipInfo("arr_1.npy", stamp), "w") as member:
            npy.write_array(member, labels, version=(1, 0))


def save_grid(path: Path, images: Block, columns: int) -> Block:
    """Write images as one grid `[H, W, 3]`, row by row, and return it."""
    rows = -(-len(images) // columns)
    side = images.shape[1]
    canvas = np.full((rows * columns, side, side, 3), 255, dtype=np.uint8)
    canvas[: len(images)] = images
    grid = canvas.reshape(rows, columns, side, side, 3).transpose(0, 2, 1, 3, 4).reshape(rows * side, columns * side, 3)
    with atomic_write(path, durable=True) as temporary:
        Image.fromarray(grid).save(temporary, format="png")
    return grid
