"""The store: plain zarr arrays of moments and patch tokens, written in committed shards, read in random batches.

`layout.py` owns every name on disk, `creation.py` makes a store and its groups, `writer.py` writes and commits shards,
`reader.py` reads batches, `store.py` opens all of it. Anything above the libraries may import this package; it imports
nothing of the project but `errors` and `converter`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .store import Group, Store, open_store

if TYPE_CHECKING:
    from .dataset import AlignmentDataset, Batch
    from .map_style_dataset import MapStyleDataset

__all__ = ["AlignmentDataset", "Batch", "Group", "MapStyleDataset", "Store", "open_store"]

_MODULE_OF = {"AlignmentDataset": "dataset", "Batch": "dataset", "MapStyleDataset": "map_style_dataset"}
_FORMER_NAMES = {"Samples": "MapStyleDataset"}  # as in version 0.1


def __getattr__(name: str) -> Any:  # lazy: inspecting a store does not import torch
    name = _FORMER_NAMES.get(name, name)
    if name in _MODULE_OF:
        return getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
