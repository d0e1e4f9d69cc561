"""Weights files: read without running anything in them, fetched from their hubs, and identified by their bytes."""

import argparse
import hashlib
import re
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor

from ..errors import WeightsError, first_line
from .encoders.torchscript import is_torchscript, read_torchscript


def read_checkpoint(path: str | Path, key: str | None = None) -> dict[str, Tensor]:
    """Read the named tensors of a weights file: safetensors, a torch file, or a TorchScript archive.

    Nothing in the file is executed. `key` is the entry of a torch file under which its tensors stand, as in
    `{"ema": {name: tensor}}`; None if the file is the dict of tensors itself. Tensors keep the file's dtype and may
    be memory-mapped, so copy what has to outlive the file. Raises WeightsError for a file that is missing, damaged,
    holds other Python objects, or has no such key.
    """
    return tensors_under(read_weights_file(path), key, path)


def read_weights_file(path: str | Path) -> dict[str, object]:
    """Return a weights file's outermost dict; see `read_checkpoint`."""
    path = Path(path)
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "does not exist"
        raise WeightsError(f"weights file {path} {found}: give the path of a .safetensors, .pth, .pt or .bin file")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if is_torchscript(path):
        return dict(read_torchscript(path))
    return _read_torch(path)


def tensors_under(content: Mapping[str, object], key: str | None, path: str | Path) -> dict[str, Tensor]:
    """Return the named tensors at `content[key]`, or those of `content` itself if `key` is None."""
    if key is not None and key not in content:
        raise WeightsError(
            f"weights file {path} has no entry {key!r}: expected tensors under that key, found {_some(content)}; "
            "check that it is the file meant for this model"
        )
    held = content if key is None else content[key]
    tensors = {}
    if isinstance(held, Mapping):
        tensors = {str(name): value for name, value in held.items() if isinstance(value, Tensor)}
    if not tensors:
        where = "at its top level" if key is None else f"under {key!r}"
        raise WeightsError(
            f"weights file {path} holds no named tensors {where}: found {_some(content)}; "
            "check that it is the file meant for this model"
        )
    return tensors


def weights_sha256(state_dict: Mapping[str, Tensor]) -> str:
    """Return the SHA-256, in hexadecimal, of tensors: names in sorted order, dtypes, shapes and raw bytes."""
    digest = hashlib.sha256()
    for name in sorted(state_dict):
        tensor = state_dict[name].detach().cpu().contiguous()
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightsSource:
    """Where published weights can be had: a file of a Hugging Face repository, or a URL."""

    repo: str | None = None
    file: str = "model.safetensors"
    url: str | None = None

    def __str__(self) -> str:
        return self.url or f"https://huggingface.co/{self.repo}/resolve/main/{self.file}"


def download_weights(name: str, sources: Sequence[WeightsSource]) -> Path:
    """Return the local path of the first source that can be had, downloading it if no cache holds it.

    Files go where their own tools keep them (the Hugging Face cache, torch.hub's `checkpoints` folder), so what
    other programs have downloaded is used. Raises WeightsError naming every source that was tried.
    """
    for source in sources:
        cached = _cached(source)
        if cached is not None:
            return cached
    failures = []
    for source in sources:
        try:
            return _download(source)
        # A network fails in as many ways as there are HTTP libraries below; each becomes part of one message.
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            failures.append(f"{source} ({reason[:120]})")
    raise WeightsError(
        f"the weights of {name} are on no disk here and could not be downloaded: tried {'; '.join(failures)}. "
        f"Download one of these where there is a network, and give the file's path as the weights of {name}"
    )


def _cached(source: WeightsSource) -> Path | None:
    if source.url is not None:
        path = _torch_hub_path(source.url)
        return path if path.is_file() else None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(str(source.repo), source.file)
    return Path(found) if isinstance(found, str) else None


def _download(source: WeightsSource) -> Path:
    if source.url is not None:
        path = _torch_hub_path(source.url)
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(
            path.with_name(f".{path.name}.lock")
        ):  # one process of a machine downloads; hf_hub_download has such a lock itself
            if not path.is_file():
                torch.hub.download_url_to_file(source.url, str(path))
        return path
    from huggingface_hub import constants, hf_hub_download

    _require_reachable(constants.ENDPOINT)
    return Path(hf_hub_download(str(source.repo), source.file))


def _require_reachable(address: str) -> None:
    """Raise at once if nothing answers: the hub's client would retry for half a minute without a network."""
    import urllib.error
    import urllib.request

    try:
        urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=10).close()
    except urllib.error.HTTPError:
        return  # somebody answered


def _torch_hub_path(url: str) -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]


def _read_safetensors(path: Path) -> dict[str, object]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except SafetensorError as error:
        raise WeightsError(
            f"weights file {path} is not a whole safetensors file ({error}): it may be truncated; download it again"
        ) from error


def _read_torch(path: Path) -> dict[str, object]:
    # Files since torch 1.6 are zip archives and can be mapped, so that an optimizer's state beside the weights is
    # never read; older ones can't.
    try:
        with harmless_globals():
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise WeightsError(
            f"weights file {path} is not a whole torch file ({first_line(error).split('. ')[0]}): it may be truncated "
            "or something else than weights; download it again"
        ) from error
    except Exception as error:  # pickle's own error, and whatever a damaged pickle raises
        raise WeightsError(_pickle_message(path, error)) from error
    if not isinstance(content, Mapping):
        raise WeightsError(f"weights file {path} holds a {type(content).__name__}: expected a dict of tensors by name")
    return {str(name): value for name, value in content.items()}


def harmless_globals() -> AbstractContextManager[None]:
    """Allow the inert objects that published checkpoints keep beside their weights: options and numpy numbers."""
    import numpy as np

    scalar: Any = np.float64(0).__reduce__()[0]
    dtypes = [np.dtype] + [type(np.dtype(kind)) for kind in ("f8", "f4", "i8", "i4", "?")]
    return torch.serialization.safe_globals(
        [argparse.Namespace, scalar, (scalar, "numpy.core.multiarray.scalar"), *dtypes]
    )


def _pickle_message(path: Path, error: Exception) -> str:
    named = re.search(r"GLOBAL (\S+)", str(error))
    if named:
        return (
            f"weights file {path} holds Python objects besides tensors ({named.group(1)}), which could run code and "
            "were not loaded: expected tensors by name; save it again as safetensors, or get the published file"
        )
    return f"weights file {path} is no weights file: expected safetensors or a torch file of tensors by name"


def _some(content: Mapping[str, object]) -> str:
    names = [str(name) for name in content]
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "") if names else "nothing"
