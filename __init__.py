"""repa-pipe: encode images once, then train SiT with representation alignment from the store, many times.

This is the Python API (docs/python-api.md). Its names are imported lazily, so that importing the package does not load
torch. No module of the package imports this one, except the command line for its version.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .version import __version__ as __version__

if TYPE_CHECKING:
    from .api import encode, evaluate, load_model, sample, train
    from .config import (
        AblateConfig,
        EncodeConfig,
        EvaluateConfig,
        ExportConfig,
        NearestConfig,
        PlanConfig,
        ProbeConfig,
        RankConfig,
        SampleConfig,
        TrainConfig,
    )
    from .models.encoders import load_encoder
    from .models.vae import load_vae
    from .stores import AlignmentDataset, MapStyleDataset, open_store

_NAMES_OF = {
    "api": ("encode", "evaluate", "load_model", "sample", "train"),
    "config": (
        "AblateConfig",
        "EncodeConfig",
        "EvaluateConfig",
        "ExportConfig",
        "NearestConfig",
        "PlanConfig",
        "ProbeConfig",
        "RankConfig",
        "SampleConfig",
        "TrainConfig",
    ),
    "models.encoders": ("load_encoder",),
    "models.vae": ("load_vae",),
    "stores": ("AlignmentDataset", "MapStyleDataset", "open_store"),
}
_MODULE_OF = {name: module for module, names in _NAMES_OF.items() for name in names}

__all__ = [
    "AblateConfig",
    "AlignmentDataset",
    "EncodeConfig",
    "EvaluateConfig",
    "ExportConfig",
    "MapStyleDataset",
    "NearestConfig",
    "PlanConfig",
    "ProbeConfig",
    "RankConfig",
    "SampleConfig",
    "TrainConfig",
    "encode",
    "evaluate",
    "load_encoder",
    "load_model",
    "load_vae",
    "open_store",
    "sample",
    "train",
]


if not TYPE_CHECKING:  # so that type checkers report misspelled names

    def __getattr__(name: str) -> Any:
        if name in _MODULE_OF:
            return getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
