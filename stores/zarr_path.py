"""Arrays that another program compressed or re-chunked: they are read through zarr-python."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import StoreError, first_line
from .checksum import crc32c_rows
from .reader import MISMATCH, UNCHECKED, Damage, ReadRequest, expected_checksums
from .remote import RemoteFiles


def read_through_zarr(
    request: ReadRequest, indices: npt.NDArray[np.int64], store: Path, files: RemoteFiles | None
) -> list[Damage]:
    """Fill the places of a request's buffer with samples of an array with any codecs; see `BatchReader.read`.

    Args:
        request: the samples of one array.
        indices: samples of the batch, `[B]`.
        store: local folder of the store.
        files: the files of a remote store; None for a local one.

    Raises:
        StoreError: zarr-python cannot read a chunk.
        RemoteError: the server of a remote store cannot be reached or refuses access.
    """
    path, places = request.array.layout.path, np.flatnonzero(request.places)
    expected = expected_checksums(request, indices)
    request.buffer[places] = _read_rows(store, path, indices[places], files)
    wrong = _mismatches(request.buffer, expected)
    if len(wrong):
        request.buffer[wrong] = _read_rows(store, path, indices[wrong], files)
        wrong = wrong[np.isin(wrong, _mismatches(request.buffer, expected))]
    if request.checks is not None:
        compared = expected != UNCHECKED
        compared[wrong] = False
        request.checks.passed(indices[compared])
    return [Damage(request, place, MISMATCH) for place in wrong.tolist()]


def _mismatches(buffer: npt.NDArray[Any], expected: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the places of samples that do not match their checksums, ascending `[n]`."""
    places = np.flatnonzero(expected != UNCHECKED)
    wrong: npt.NDArray[np.int64] = places[crc32c_rows(buffer[places]) != expected[places]]
    return wrong


def _read_rows(store: Path, array: Path, rows: npt.NDArray[np.int64], files: RemoteFiles | None) -> npt.NDArray[Any]:
    """Return samples of an array, `[len(rows), *sample_shape]`, by zarrs if it is installed and the array is local."""
    import zarr

    def read(source: Any) -> npt.NDArray[Any]:
        opened = zarr.open_array(source, path=str(array.relative_to(store)), mode="r")
        return np.asarray(opened.oindex[unique])

    unique, places = np.unique(rows, return_inverse=True)  # decodes every chunk once
    pipeline = {"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"} if files is None and _has_zarrs() else {}
    try:
        with zarr.config.set(pipeline):
            block = read(str(store)) if files is None else files.read_through_zarr(read)
    except StoreError:  # of the server
        raise
    except Exception as error:  # every codec has its own exceptions for bytes that it cannot decode
        raise StoreError(
            f"{array}: samples {unique[0]} to {unique[-1]} cannot be decoded ({first_line(error)}): restore the array "
            "that another program rewrote from a copy"
        ) from error
    return block[places]


def _has_zarrs() -> bool:
    return importlib.util.find_spec("zarrs") is not None
