"""Exported checkpoints: the weights of one model as safetensors, with everything that sampling needs as metadata.

Tensors have the published names, so that any program can load them. The metadata are `repa_pipe.checkpoint`, the
entries of a checkpoint besides its tensors as JSON, `repa_pipe.checksum`, over these and all tensors, and
`repa_pipe.version`. Mean and variance of token latents are tensors as well, `latents.mean` and `latents.var`.
Paths of files in the settings keep their last component only, since such files are given to others.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from ...config import TrainConfig
from ...config.paths import PathKind, split_named
from ...converter import parse_json, structure
from ...errors import CheckpointError, ConfigError, DamagedCheckpointError, WeightsError, first_line
from ...stores.checksum import crc32c, crc32c_bytes
from ...stores.files import atomic_write
from ...stores.hub import is_hub
from ...version import __version__

if TYPE_CHECKING:
    from torch import Tensor

SUFFIX = ".safetensors"
FORMAT = 1
_FACTS, _CHECKSUM, _VERSION = "repa_pipe.checkpoint", "repa_pipe.checksum", "repa_pipe.version"
_LATENTS = "latents."  # prefix of the statistics of token latents; no model has tensors of such names
Weights = Literal["ema", "model"]


class _Format(TypedDict):
    """What has to be known before the other facts are read."""

    format: int
    weights: Weights


def exported_of(values: Mapping[str, Any], ema: bool) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return tensors and facts of an exported file.

    Args:
        values: the contents of a checkpoint, as `load_checkpoint` returns them.
        ema: whether to take the EMA weights.
    """
    weights: Weights = "ema" if ema else "model"
    others = {name: value for name, value in values.items() if name not in _NOT_EXPORTED}
    latents = dict(others.pop("latents", None) or {})
    tensors = dict(values[weights]) | {f"{_LATENTS}{name}": latents.pop(name) for name in ("mean", "var") if latents}
    config = without_folders(TrainConfig.from_json(others["config"]))
    facts = {"format": FORMAT, "weights": weights, **others, "config": config.as_json()}
    return tensors, facts | ({"latents": latents} if latents else {})


_NOT_EXPORTED = frozenset({"model", "ema", "opt", "scaler"})


def without_folders(config: TrainConfig) -> TrainConfig:
    """Return settings in which paths are their last component: others need not know the folders of a machine.

    Locations on the Hugging Face Hub stay.
    """
    changes: dict[str, Any] = {}
    for item in fields(config):
        kind, value = item.metadata["path"], getattr(config, item.name)
        if kind in {PathKind.PATH, PathKind.NAMED} and value:
            plain = tuple(map(_last, value)) if isinstance(value, tuple) else _last(value)
            changes[item.name] = plain
    return replace(config, **changes)


def _last(text: str) -> str:
    if is_hub(text):
        return text
    name, separator, path = split_named(text)
    return f"{name}{separator}{PurePosixPath(path).name}" if separator else PurePosixPath(text).name


def write_exported(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> bool:
    """Write an exported checkpoint atomically; return False if `path` already has the same contents.

    Raises:
        ConfigError: `path` is something else.
        CheckpointError: it cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    text = json.dumps(facts, sort_keys=True)
    checksum = checksum_of(tensors, text)
    if path.exists():
        _require_same(path, checksum)
        return False
    metadata = {"format": "pt", _VERSION: __version__, _FACTS: text, _CHECKSUM: checksum}
    try:
        with atomic_write(path, durable=True) as temporary:
            temporary.touch()
            mode = temporary.stat().st_mode
            save_file(_separate(tensors), temporary, metadata)
            temporary.chmod(mode)  # safetensors writes files that others cannot read
    except (OSError, SafetensorError) as error:  # the latter also for a full disk
        raise CheckpointError(
            f"{path} could not be written ({first_line(error)}): free space and export again"
        ) from error
    return True


def _require_same(path: Path, checksum: str) -> None:
    try:
        found = read_exported(path)
    except (CheckpointError, WeightsError):
        found = None
    if found is None or found[CHECKSUM] != checksum:
        raise ConfigError(f"--out {path} exists and holds something else: delete it, or specify another --out")


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return contiguous tensors that share no memory, as safetensors requires."""
    seen: set[int] = set()
    result = {}
    for name, value in tensors.items():
        start = value.untyped_storage().data_ptr()
        whole = value.is_contiguous() and value.untyped_storage().nbytes() == value.nbytes and start not in seen
        seen.add(start)
        result[name] = value if whole else value.clone().contiguous()
    return result


def checksum_of(tensors: Mapping[str, Tensor], text: str) -> str:
    """Return a checksum of text, and of names, dtypes, shapes and bytes of tensors."""
    import torch

    total = crc32c_bytes(text.encode())
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        head = f"{name}\0{value.dtype}\0{tuple(value.shape)}\0{total:08x}"
        total = crc32c(value.reshape(-1).view(torch.uint8).numpy(), crc32c_bytes(head.encode()))
    return f"crc32c:{total:08x}"


CHECKSUM = "checksum"  # entry of what `read_exported` returns


def read_exported(path: Path) -> dict[str, Any] | None:
    """Return the entries of a checkpoint that an exported file holds, with `ema` or `model`, and its `checksum`.

    Returns None for safetensors of another origin.

    Raises:
        WeightsError: it is no complete safetensors file.
        DamagedCheckpointError: the checksum differs.
        CheckpointError: a later version of repa-pipe has written it, or its facts are malformed.
    """
    from ...models.weight_files import read_checkpoint, read_safetensors_metadata

    metadata = read_safetensors_metadata(path)
    if _FACTS not in metadata:
        return None
    tensors, text = read_checkpoint(path), metadata[_FACTS]
    checksum = checksum_of(tensors, text)
    if metadata.get(_CHECKSUM) != checksum:
        raise DamagedCheckpointError(
            f"{path} is damaged (checksum mismatch): restore it from a copy, download it again, or export it again"
        )
    facts: dict[str, Any] = parse_json(text.encode(), f"{path}: {_FACTS}", CheckpointError)
    found = structure(
        {name: facts.pop(name, None) for name in ("format", "weights")}, _Format, str(path), CheckpointError
    )
    if found["format"] != FORMAT:
        raise CheckpointError(f"{path} has format {found['format']}, expected {FORMAT}: update repa-pipe")
    latents = {name: tensors.pop(_LATENTS + name) for name in ("mean", "var") if _LATENTS + name in tensors}
    entries = facts | ({"latents": facts.get("latents", {}) | latents} if latents else {})
    return entries | {found["weights"]: tensors, CHECKSUM: checksum}
