"""The store: plain zarr arrays of moments and patch tokens, written in committed shards, read in random batches.

`layout` defines every name on disk, `creation` creates stores and groups, `writer` writes and commits shards, `reader`
reads batches, `store` opens a store, `indexing` and `selection` interpret which samples are meant, `dataset` feeds a
trainer, `verify` checks checksums, and `remote`, `mirror` and `upload` handle stores behind URLs. The pipeline and the
CLI may import this package. From the rest of the project it imports only `converter`, `errors` and `version`, and
importing it does not load torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .store import Group, Selection, Store, open_store

if TYPE_CHECKING:
    from .batch import Batch
    from .dataset import AlignmentDataset
    from .map_style_dataset import MapStyleDataset

__all__ = ["AlignmentDataset", "Batch", "Group", "MapStyleDataset", "Selection", "Store", "open_store"]

_MODULE_OF = {"AlignmentDataset": "dataset", "Batch": "batch", "MapStyleDataset": "map_style_dataset"}
_FORMER_NAMES = {"Samples": "MapStyleDataset"}  # as in version 0.1


def __getattr__(name: str) -> Any:  # lazy, so that inspecting a store does not import torch
    name = _FORMER_NAMES.get(name, name)
    if name in _MODULE_OF:
        return getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
