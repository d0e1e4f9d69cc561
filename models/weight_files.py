"""Weights files: downloaded from their hubs, read without executing anything in them, identified by a digest."""

from __future__ import annotations

import argparse
import errno
import hashlib
import re
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from ..errors import DamagedWeightsError, WeightsError, first_line
from .checked_zip import find_damage

if TYPE_CHECKING:
    from torch import Tensor


def read_checkpoint(path: str | Path, key: str | None = None) -> dict[str, Tensor]:
    """Read the named tensors of a safetensors or torch file without executing anything in it.

    Args:
        path: the file.
        key: the entry of a torch file that holds the tensors, as in `{"ema": {name: tensor}}`; None when the file is
            the dict of tensors itself.

    Returns:
        Tensors by name, in the file's dtypes. They may be memory-mapped: copy what has to outlive the file.

    Raises:
        WeightsError: the file is missing, damaged or lacks `key`, or it holds other Python objects.
    """
    return tensors_under(read_weights_file(path), key, path)


def read_weights_file(path: str | Path) -> dict[str, object]:
    """Read the outermost dict of a weights file; raises WeightsError like `read_checkpoint`."""
    path = Path(path)
    require_weights_file(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    return _read_torch(path)


def require_weights_file(path: Path) -> None:
    """Raise WeightsError unless there is a file at `path`. Imports no torch."""
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "does not exist"
        raise WeightsError(f"weights file {path} {found}; expected a .safetensors, .pth, .pt or .bin file")


def tensors_under(content: Mapping[str, object], key: str | None, path: str | Path) -> dict[str, Tensor]:
    """Return the named tensors in `content[key]`, or in `content` itself if `key` is None.

    Raises:
        WeightsError: `key` is missing, or it holds no named tensors. The message names `path`.
    """
    from torch import Tensor

    if key is not None and key not in content:
        raise WeightsError(
            f"weights file {path} has no entry {key!r}: expected tensors under that key, found "
            f"{_summarize(content)}. Check that this is the file for this model"
        )
    entry = content if key is None else content[key]
    tensors = {}
    if isinstance(entry, Mapping):
        tensors = {str(name): value for name, value in entry.items() if isinstance(value, Tensor)}
    if not tensors:
        where = "at its top level" if key is None else f"under {key!r}"
        raise WeightsError(
            f"weights file {path} holds no named tensors {where}; found {_summarize(content)}. "
            "Check that this is the file for this model"
        )
    return tensors


def weights_sha256(state_dict: Mapping[str, Tensor]) -> str:
    """Return the hexadecimal SHA-256 of tensors: names in sorted order, dtypes, shapes and raw bytes."""
    import torch

    digest = hashlib.sha256()
    for name in sorted(state_dict):
        tensor = state_dict[name].detach().cpu().contiguous()
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightsSource:
    """A place to download published weights from: a file of a Hugging Face repository, or a URL."""

    repo: str | None = None
    file: str = "model.safetensors"
    url: str | None = None

    def __str__(self) -> str:
        return self.url or f"https://huggingface.co/{self.repo}/resolve/main/{self.file}"


def download_weights(name: str, sources: Sequence[WeightsSource], remedy: str = "") -> Path:
    """Return the local path of the first available source; download it if no cache holds any of them.

    Files are kept where their own tools keep them (the Hugging Face cache, torch.hub's `checkpoints` folder), so files
    that other programs have downloaded are reused.

    Args:
        name: the model that error messages name.
        sources: tried in this order.
        remedy: the instruction that ends the error message; by default, to download one of the sources by hand.

    Raises:
        WeightsError: no source is available. The message names every source that was tried.
    """
    for source in sources:
        cached = find_cached(source)
        if cached is not None:
            return cached
    failures = []
    for source in sources:
        try:
            return _download(source)
        # Each HTTP library below fails with errors of its own. All of them become one message.
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            failures.append(f"{source} ({reason[:120]})")
    remedy = remedy or (
        f"Download one of these on a machine with network access and pass the file's path as the weights of {name}"
    )
    raise WeightsError(
        f"the weights of {name} are not cached and could not be downloaded: tried {'; '.join(failures)}. {remedy}"
    )


def find_cached(source: WeightsSource) -> Path | None:
    """Return the local path of a source if its file was downloaded before."""
    if source.url is not None:
        path = _torch_hub_path(source.url)
        return path if path.is_file() else None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(str(source.repo), source.file)
    return Path(found) if isinstance(found, str) else None


def _download(source: WeightsSource) -> Path:
    if source.url is not None:
        import torch

        path = _torch_hub_path(source.url)
        path.parent.mkdir(parents=True, exist_ok=True)
        # One process per machine downloads. hf_hub_download takes such a lock itself.
        with FileLock(path.with_name(f".{path.name}.lock")):
            if not path.is_file():
                torch.hub.download_url_to_file(source.url, str(path))
        return path
    from huggingface_hub import constants, hf_hub_download

    _require_reachable(constants.ENDPOINT)
    return Path(hf_hub_download(str(source.repo), source.file))


def _require_reachable(url: str) -> None:
    """Fail fast if the hub does not respond: without a network, its client retries for half a minute."""
    import urllib.error
    import urllib.request

    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=10).close()
    except urllib.error.HTTPError:
        return  # an error status is a response


def _torch_hub_path(url: str) -> Path:
    import torch

    return Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]


def _read_safetensors(path: Path) -> dict[str, object]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except SafetensorError as error:
        raise WeightsError(
            f"weights file {path} is not a complete safetensors file ({first_line(error)}); it may be truncated. "
            "Download it again"
        ) from error


def read_safetensors_shapes(path: Path) -> dict[str, Any]:
    """Return what has the shape of each tensor of a safetensors file, reading only its header; imports no torch.

    Raises:
        WeightsError: the file is missing or damaged.
    """
    from safetensors import SafetensorError, safe_open

    require_weights_file(path)
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: _Shape(tuple(file.get_slice(name).get_shape())) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise WeightsError(f"weights file {path} is not a complete safetensors file ({first_line(error)})") from error


def read_safetensors_metadata(path: Path) -> dict[str, str]:
    """Return the metadata in the header of a safetensors file; raises WeightsError like `read_safetensors_shapes`."""
    from safetensors import SafetensorError, safe_open

    require_weights_file(path)
    try:
        with safe_open(path, framework="numpy") as file:
            return dict(file.metadata() or {})
    except SafetensorError as error:
        raise WeightsError(f"weights file {path} is not a complete safetensors file ({first_line(error)})") from error


@dataclass(frozen=True, slots=True)
class _Shape:
    shape: tuple[int, ...]


def _read_torch(path: Path) -> dict[str, object]:
    import torch

    # Files written since torch 1.6 are zip archives. Mapping them avoids copies of optimizer state stored with the
    # weights. Older files cannot be mapped, and have no checksums.
    try:
        is_zip = zipfile.is_zipfile(path)
        _require_intact(path, find_damage(path) if is_zip else None)
        with harmless_globals():
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        if isinstance(error, WeightsError):
            raise
        raise _error_type(error)(
            f"weights file {path} cannot be read as a torch file ({first_line(error).split('. ')[0]}); it may be "
            "truncated, or not a weights file. Download it again"
        ) from error
    except Exception as error:  # pickle.UnpicklingError, and whatever a damaged pickle raises
        raise _unpickling_error(path, error) from error
    if not isinstance(content, Mapping):
        raise WeightsError(f"weights file {path} holds a {type(content).__name__}; expected a dict of tensors by name")
    return {str(name): value for name, value in content.items()}


def _require_intact(path: Path, damage: str | None) -> None:
    if damage is not None:
        raise DamagedWeightsError(
            f"weights file {path} is damaged ({damage}): restore it from a copy, or download it again"
        )


def _error_type(error: Exception) -> type[WeightsError]:
    """Return whether the file is to blame, or the machine: no memory to map it, no permission, a lost server."""
    if isinstance(error, OSError):
        return DamagedWeightsError if error.errno in (None, errno.EIO) else WeightsError
    is_memory = re.search("mmap|memory|alloc", str(error))
    return WeightsError if is_memory else DamagedWeightsError


def harmless_globals() -> AbstractContextManager[None]:
    """Allow the inert objects that published checkpoints store with their weights: options and numpy scalars."""
    import numpy as np
    import torch

    scalar: Any = np.float64(0).__reduce__()[0]
    dtypes = [np.dtype] + [type(np.dtype(kind)) for kind in ("f8", "f4", "i8", "i4", "?")]
    return torch.serialization.safe_globals(
        [argparse.Namespace, scalar, (scalar, "numpy.core.multiarray.scalar"), *dtypes]
    )


def _unpickling_error(path: Path, error: Exception) -> WeightsError:
    refused = re.search(r"GLOBAL (\S+)", str(error))
    if refused:
        return WeightsError(
            f"weights file {path} holds Python objects that could run code ({refused.group(1)}) and was not loaded; "
            "expected tensors by name. Get the published file, or save the tensors as safetensors"
        )
    return DamagedWeightsError(
        f"{path} is not a weights file; expected safetensors, or a torch file of tensors by name"
    )


def _summarize(content: Mapping[str, object]) -> str:
    names = [str(name) for name in content]
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "") if names else "nothing"
