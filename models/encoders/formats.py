"""Formats of published checkpoint files, as renamings to timm's tensor names for the same architectures.

A file that already has timm's names passes through unchanged, so both kinds of file load and give the same digest.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from ...errors import WeightsError
from ..weight_files import read_weights_file, tensors_under

if TYPE_CHECKING:
    from torch import Tensor

Tensors: TypeAlias = "dict[str, Tensor]"


def read_published_file(path: Path) -> dict[str, object]:
    """Read the outermost dict of a weights file: safetensors, a torch file, or a TorchScript archive as OpenAI's CLIP.

    Raises:
        WeightsError: the file is missing or damaged, or it holds other Python objects.
    """
    from .torchscript import is_torchscript, read_torchscript

    return dict(read_torchscript(path)) if is_torchscript(path) else read_weights_file(path)


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedFormat:
    """The layout and tensor names of a published file.

    Attributes:
        key: the entry of the file that holds the tensors, if any.
        prefix: the start of this encoder's names, in files that also hold other networks.
        dropped: pattern of the names that only training needs.
        renames: (pattern, replacement) pairs, applied in order.
        convert: changes that renaming cannot express; called with the tensors and timm's names.
    """

    key: str | None = None
    prefix: str = ""
    dropped: str = r"head\..*|mask_token"
    renames: tuple[tuple[str, str], ...] = ()
    convert: Callable[[Tensors, Sequence[str]], Tensors] | None = None

    def read(self, path: Path, names: Sequence[str]) -> Tensors:
        """Read a published file as float32 tensors under timm's names; `names` are those of timm's model, in order.

        Raises:
            WeightsError: the file is missing or damaged, or it holds no named tensors.
        """
        content = read_published_file(path)
        key = self.key if self.key in content else None
        return self.to_timm(tensors_under(content, key, path), names)

    def to_timm(self, published: Mapping[str, Tensor], names: Sequence[str]) -> Tensors:
        """Rename published tensors; `names` are those of timm's model, in order."""
        import torch

        prefixed = {n.removeprefix(self.prefix): t for n, t in published.items() if n.startswith(self.prefix)}
        tensors = {}
        for name, tensor in (prefixed or published).items():
            if re.fullmatch(self.dropped, name):
                continue
            for pattern, replacement in self.renames:
                name = re.sub(pattern, replacement, name)  # noqa: PLW2901
            # Copied, since the tensors may be memory-mapped and the file may be overwritten.
            tensors[name] = tensor.to(torch.float32, copy=True) if tensor.is_floating_point() else tensor.clone()
        return self.convert(tensors, names) if self.convert else tensors


def check_fit(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], name: str, path: Path, origin: str) -> None:
    """Raise WeightsError, in one line, unless names and shapes match; `origin` describes the file that would fit."""
    missing = [key for key in expected if key not in found]
    unexpected = [key for key in found if key not in expected]
    differing = [
        f"{key} (expected {list(expected[key].shape)}, found {list(found[key].shape)})"
        for key in expected
        if key in found and found[key].shape != expected[key].shape
    ]
    problems = [
        f"{label} {items[0]}" + (f" and {len(items) - 1} more" if len(items) > 1 else "")
        for label, items in (("missing", missing), ("unexpected", unexpected), ("wrong shape of", differing))
        if items
    ]
    if problems:
        raise WeightsError(misfit_message(path, name, "; ".join(problems), origin))


def misfit_message(path: Path, name: str, problem: str, origin: str) -> str:
    """Return the message for a weights file of another network; `origin` describes the file that would fit."""
    return (
        f"weights file {path} does not fit {name}: {problem}. Expected {origin}; pass that file, or specify the "
        "encoder that this file belongs to"
    )


def _dinov2_tensors(tensors: Tensors, names: Sequence[str]) -> Tensors:
    return _fold_register_positions(_joined_qkv(tensors), names)


def _joined_qkv(tensors: Tensors) -> Tensors:
    """Join queries, keys and values, which are tensors of their own in transformers' files."""
    import torch

    joined = {}
    for name, tensor in tensors.items():
        block, part, kind = name.rpartition(".attn.query.")
        if not part:
            if not re.search(r"\.attn\.(key|value)\.", name):
                joined[name] = tensor
            continue
        parts = [tensors.get(f"{block}.attn.{each}.{kind}") for each in ("query", "key", "value")]
        joined[f"{block}.attn.qkv.{kind}"] = torch.cat([each for each in parts if each is not None])
    return joined


def _fold_register_positions(tensors: Tensors, _: Sequence[str]) -> Tensors:
    """DINOv2 with registers: timm's files have the class token's position embedding already added to it."""
    if "register_tokens" not in tensors:
        return tensors
    positions = tensors.pop("pos_embed")
    tensors["reg_token"] = tensors.pop("register_tokens")
    tensors["cls_token"] = tensors["cls_token"] + positions[:, :1]
    tensors["pos_embed"] = positions[:, 1:].contiguous()
    return tensors


def _add_batch_axes(tensors: Tensors, _: Sequence[str]) -> Tensors:
    """OpenAI's CLIP: the class token is [D] and the position embedding [N, D]."""
    shapes = {"cls_token": 1, "pos_embed": 2}
    for name, axes in shapes.items():
        if name in tensors and tensors[name].ndim == axes:
            tensors[name] = tensors[name].reshape(1, -1, tensors[name].shape[-1])
    return tensors


def _rename_by_order(tensors: Tensors, names: Sequence[str]) -> Tensors:
    """Another implementation of the same network: the same tensors in the same order, with other names."""
    if len(tensors) != len(names) or set(tensors) == set(names):
        return tensors
    return dict(zip(names, tensors.values(), strict=True))


TIMM = PublishedFormat()
# Meta's files, and those of transformers (facebook/dinov2-with-registers-base), which RAE loads
DINOV2 = PublishedFormat(
    dropped=r"head\..*|(embeddings\.)?mask_token",
    renames=(
        (r"\.mlp\.w12\.", ".mlp.fc1."),
        (r"\.mlp\.w3\.", ".mlp.fc2."),
        (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
        (r"^embeddings\.position_embeddings$", "pos_embed"),
        (r"^embeddings\.", ""),
        (r"^encoder\.layer\.", "blocks."),
        (r"^layernorm\.", "norm."),
        (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
        (r"\.mlp\.weights_in\.", ".mlp.fc1."),
        (r"\.mlp\.weights_out\.", ".mlp.fc2."),
        (r"\.attention\.output\.dense\.", ".attn.proj."),
        (r"\.attention\.attention\.", ".attn."),
    ),
    convert=_dinov2_tensors,
)
# The code that wrote the published files misnamed four tensors. RCG and REPA correct the same four.
MOCOV3 = PublishedFormat(
    key="state_dict",
    prefix="module.base_encoder.",
    renames=(
        (r"blocks\.13\.norm13", "blocks.13.norm1"),
        (r"blocks\.13\.mlp\.fc13", "blocks.13.mlp.fc1"),
        (r"blocks\.14\.norm14", "blocks.14.norm2"),
        (r"blocks\.14\.mlp\.fc14", "blocks.14.mlp.fc2"),
    ),
)
MAE = PublishedFormat(key="model", dropped=r"head\..*|mask_token|decoder_.*")
JEPA = PublishedFormat(key="encoder", prefix="module.")
CLIP = PublishedFormat(
    prefix="visual.",
    dropped=r"proj|head\..*",
    renames=(
        (r"^class_embedding$", "cls_token"),
        (r"^positional_embedding$", "pos_embed"),
        (r"^conv1\.", "patch_embed.proj."),
        (r"^ln_pre\.", "norm_pre."),
        (r"^ln_post\.", "norm."),
        (r"^transformer\.resblocks\.", "blocks."),
        (r"\.ln_([12])\.", r".norm\1."),
        (r"\.attn\.in_proj_", ".attn.qkv."),
        (r"\.attn\.out_proj\.", ".attn.proj."),
        (r"\.mlp\.c_fc\.", ".mlp.fc1."),
        (r"\.mlp\.c_proj\.", ".mlp.fc2."),
    ),
    convert=_add_batch_axes,
)
EFFICIENTNET_LITE = PublishedFormat(dropped="", convert=_rename_by_order)
