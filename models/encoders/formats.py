"""Published checkpoint files of encoders, renamed to timm's names for the same architectures.

A file of timm's own passes through unchanged, so both kinds load, and give the same digest.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...errors import WeightsError
from ..weight_files import read_weights_file, tensors_under

Tensors = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedFormat:
    """How a published file names an encoder's tensors.

    `wrapped_under` is the file's entry that holds them, if any; `prefix` starts the names of this encoder where a
    file holds other networks too; names that match `dropped` belong to training; `renamed` are (pattern,
    replacement) pairs, applied in order; `mended` changes what renaming alone can't, given timm's names.
    """

    wrapped_under: str | None = None
    prefix: str = ""
    dropped: str = r"head\..*|mask_token"
    renamed: tuple[tuple[str, str], ...] = ()
    mended: Callable[[Tensors, Sequence[str]], Tensors] | None = None

    def read(self, path: Path, names: Sequence[str]) -> Tensors:
        """Read a published file as float32 tensors under timm's names; see `read_checkpoint` for the errors."""
        content = read_weights_file(path)
        key = self.wrapped_under if self.wrapped_under in content else None
        return self.to_timm(tensors_under(content, key, path), names)

    def to_timm(self, published: Mapping[str, Tensor], names: Sequence[str]) -> Tensors:
        """Rename published tensors; `names` are those of timm's model, in its order."""
        prefixed = {n.removeprefix(self.prefix): t for n, t in published.items() if n.startswith(self.prefix)}
        tensors = {}
        for name, tensor in (prefixed or published).items():
            if re.fullmatch(self.dropped, name):
                continue
            for pattern, replacement in self.renamed:
                name = re.sub(pattern, replacement, name)  # noqa: PLW2901
            # Copied, because a file may be memory-mapped and somebody may overwrite it.
            tensors[name] = tensor.to(torch.float32, copy=True) if tensor.is_floating_point() else tensor.clone()
        return self.mended(tensors, names) if self.mended else tensors


def check_fit(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], name: str, path: Path, wanted: str) -> None:
    """Raise WeightsError, in one line, unless the names and shapes found are those expected.

    `wanted` says which file would fit.
    """
    missing = [key for key in expected if key not in found]
    unexpected = [key for key in found if key not in expected]
    differing = [
        f"{key} is {list(found[key].shape)} instead of {list(expected[key].shape)}"
        for key in expected
        if key in found and found[key].shape != expected[key].shape
    ]
    problems = [
        f"{label} {items[0]}" + (f" and {len(items) - 1} more" if len(items) > 1 else "")
        for label, items in (("it lacks", missing), ("it has", unexpected), ("its", differing))
        if items
    ]
    if problems:
        raise WeightsError(
            f"weights file {path} does not fit {name}: {'; '.join(problems)}. Expected {wanted}; "
            "give that file, or name the encoder that this one belongs to"
        )


def _fold_registers(tensors: Tensors, _: Sequence[str]) -> Tensors:
    """DINOv2 with registers: timm adds the class token's position embedding once, in the file."""
    if "register_tokens" not in tensors:
        return tensors
    positions = tensors.pop("pos_embed")
    tensors["reg_token"] = tensors.pop("register_tokens")
    tensors["cls_token"] = tensors["cls_token"] + positions[:, :1]
    tensors["pos_embed"] = positions[:, 1:].contiguous()
    return tensors


def _add_batch_axes(tensors: Tensors, _: Sequence[str]) -> Tensors:
    """OpenAI's CLIP keeps its class token as [D] and its position embedding as [N, D]."""
    shapes = {"cls_token": 1, "pos_embed": 2}
    for name, axes in shapes.items():
        if name in tensors and tensors[name].ndim == axes:
            tensors[name] = tensors[name].reshape(1, -1, tensors[name].shape[-1])
    return tensors


def _named_by_order(tensors: Tensors, names: Sequence[str]) -> Tensors:
    """Another implementation of the same network: its tensors stand in the same order under other names."""
    if len(tensors) != len(names) or set(tensors) == set(names):
        return tensors
    return dict(zip(names, tensors.values(), strict=True))


TIMM_NAMES = PublishedFormat()
DINOV2 = PublishedFormat(
    renamed=((r"\.mlp\.w12\.", ".mlp.fc1."), (r"\.mlp\.w3\.", ".mlp.fc2.")),
    mended=_fold_registers,
)
# Published files were written by code that renamed with a careless pattern; RCG and REPA mend the same four names.
MOCOV3 = PublishedFormat(
    wrapped_under="state_dict",
    prefix="module.base_encoder.",
    renamed=(
        (r"blocks\.13\.norm13", "blocks.13.norm1"),
        (r"blocks\.13\.mlp\.fc13", "blocks.13.mlp.fc1"),
        (r"blocks\.14\.norm14", "blocks.14.norm2"),
        (r"blocks\.14\.mlp\.fc14", "blocks.14.mlp.fc2"),
    ),
)
MAE = PublishedFormat(wrapped_under="model", dropped=r"head\..*|mask_token|decoder_.*")
JEPA = PublishedFormat(wrapped_under="encoder", prefix="module.")
CLIP = PublishedFormat(
    prefix="visual.",
    dropped=r"proj|head\..*",
    renamed=(
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
    mended=_add_batch_axes,
)
EFFICIENTNET_LITE = PublishedFormat(dropped="", mended=_named_by_order)
