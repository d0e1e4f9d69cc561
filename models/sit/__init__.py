"""SiT, the diffusion transformer that is trained: its configs, layers, weights, and REG's variant with a class token.

The pipeline and `models.flops` may import this package. From the rest of the project it imports only `converter` and
`errors`; names are imported lazily, so that importing the package does not load torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import SIT_PRESETS, SiTConfig, sit_config
    from .entangled import EntangledSiT, make_sit
    from .infer_config import infer_sit_config, require_sizes
    from .model import SiT, drop_labels, load_sit_state
    from .tensor_names import current_names

_MODULE_OF = {
    "SIT_PRESETS": "config",
    "SiTConfig": "config",
    "sit_config": "config",
    "EntangledSiT": "entangled",
    "make_sit": "entangled",
    "infer_sit_config": "infer_config",
    "require_sizes": "infer_config",
    "SiT": "model",
    "drop_labels": "model",
    "load_sit_state": "model",
    "current_names": "tensor_names",
}
__all__ = [
    "SIT_PRESETS",
    "EntangledSiT",
    "SiT",
    "SiTConfig",
    "current_names",
    "drop_labels",
    "infer_sit_config",
    "load_sit_state",
    "make_sit",
    "require_sizes",
    "sit_config",
]


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
