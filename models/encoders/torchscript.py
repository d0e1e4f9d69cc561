"""Tensors of a TorchScript archive, read as data. OpenAI publishes CLIP as such archives.

`torch.jit.load` would compile the program in the archive, and is deprecated. The archive's pickle is a tree of objects
whose attributes are tensors, so it is read with an unpickler that replaces every class by a plain stand-in and calls no
function but the one that rebuilds a tensor.
"""

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import WeightsError

_STORAGE_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


def is_torchscript(path: Path) -> bool:
    """Return whether a file is a TorchScript archive: a zip archive with a constants.pkl."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """Return all tensors of an archive by dotted attribute name, on the CPU, in the archive's dtypes.

    Raises:
        WeightsError: the archive is damaged, or it holds anything but modules of tensors and plain values.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            data = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            with archive.open(data) as file:
                root = _Unpickler(file, archive, data.removesuffix("data.pkl") + "data/").load()
    except Exception as error:  # a damaged zip archive or pickle can raise anything
        raise WeightsError(
            f"weights file {path} is a TorchScript archive that cannot be read ({error}). Download it again"
        ) from error
    return dict(_tensors(root, ""))


class _Module:
    """Stand-in for any class of the archive: its attributes without its code."""


def _rebuild_tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    return storage.as_strided(size, stride, offset)


def _plain_list(values: list[Any]) -> list[Any]:
    return values


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: Any, archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(file)
        self._archive = archive
        self._folder = folder

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__"):
            return _Module
        if module == "torch._utils" and name == "_rebuild_tensor_v2":
            return _rebuild_tensor
        if module == "torch" and name in _STORAGE_DTYPES:
            return _STORAGE_DTYPES[name]
        if module == "torch.jit._pickle" and name in ("build_intlist", "build_doublelist", "build_boollist"):
            return _plain_list
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        raise pickle.UnpicklingError(f"it holds {module}.{name}, which was not loaded")

    def persistent_load(self, pid: Any) -> Tensor:
        _, dtype, key, _, _ = pid
        return torch.frombuffer(bytearray(self._archive.read(self._folder + key)), dtype=dtype)


def _tensors(value: object, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, _Module):
        for attribute, child in vars(value).items():
            yield from _tensors(child, f"{name}.{attribute}" if name else attribute)
