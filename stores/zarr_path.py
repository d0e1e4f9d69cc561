"""Arrays that another program compressed or re-chunked: they are read through zarr-python."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .remote import RemoteFiles


def read_through_zarr(
    store: Path, array: Path, rows: npt.NDArray[np.int64], files: RemoteFiles | None
) -> npt.NDArray[Any]:
    """Read samples of an array with any codecs: `[len(rows), *sample_shape]`.

    Uses the codec pipeline of zarrs for local arrays if zarrs is installed.

    Args:
        store: local folder of the store.
        array: path of the array in that folder.
        rows: samples to read.
        files: the files of a remote store; None for a local one.
    """
    import zarr

    source: Any = str(store) if files is None else files.zarr_store()
    pipeline = {"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"} if files is None and _has_zarrs() else {}
    with zarr.config.set(pipeline):
        opened = zarr.open_array(source, path=str(array.relative_to(store)), mode="r")
        unique, places = np.unique(rows, return_inverse=True)  # decodes every chunk once
        block: npt.NDArray[Any] = np.asarray(opened.oindex[unique])
    return block[places]


def _has_zarrs() -> bool:
    return importlib.util.find_spec("zarrs") is not None
