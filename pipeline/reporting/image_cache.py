"""Images that are expensive to derive from stored samples, computed for the first report and cached for later ones.

The cache has one .npz file per group of a store and selection of samples in `~/.cache/repa-pipe/report-images` (or
below $REPA_PIPE_CACHE), named by a digest of the stored values and of everything else that the images depend on.
Damaged files are recomputed.
"""

from __future__ import annotations

import hashlib
import logging
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ...stores.files import atomic_write, remove_abandoned
from ..runtime.cache import VARIABLE, cache_file

logger = logging.getLogger(__name__)

Arrays = Mapping[str, npt.NDArray[Any]]

_KIND, _SUFFIX = "report-images", ".npz"


def content_digest(arrays: Arrays) -> str:
    """Return a digest of the names, dtypes, shapes and values of arrays."""
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape} ".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def read_cached(key: dict[str, Any]) -> dict[str, npt.NDArray[Any]] | None:
    """Return the cached arrays, or None if there are none or the file is damaged."""
    path = cache_file(_KIND, key, _SUFFIX)
    if not path.exists():
        return None
    try:
        with path.open("rb") as data, np.load(data, allow_pickle=False) as file:
            return dict(file)  # reading a member verifies its checksum
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        logger.warning("%s is damaged (%s): recomputing the images", path, error)
        return None


def write_cached(key: dict[str, Any], arrays: Arrays) -> None:
    """Write atomically. A failure only costs time later, so it is not an error."""
    path = cache_file(_KIND, key, _SUFFIX)
    try:
        remove_abandoned(path.parent)
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
    except OSError as error:
        logger.warning(
            "images of the report are not cached: %s cannot be written (%s); set $%s to another folder",
            path,
            error.strerror,
            VARIABLE,
        )
