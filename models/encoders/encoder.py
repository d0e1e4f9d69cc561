"""Frozen image encoders: images in, patch tokens on SiT's token grid out."""

import re
import warnings
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...errors import ConfigError
from ..weight_files import weights_sha256
from .entry import EncoderEntry, token_grid
from .registry import REGISTRY, TIMM_NAMES, find_entry

Fingerprint = dict[str, str | int | float | list[int]]

_PRECISIONS = {None: "float32", torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}


@dataclass(frozen=True, slots=True)
class Tokens:
    """An encoder's output, float32: `patch_tokens` [B, N, D] in row order, `cls_token` [B, D] or None."""

    patch_tokens: Tensor
    cls_token: Tensor | None


@dataclass(frozen=True, slots=True)
class EncoderInfo:
    """The shapes of an encoder's output, known without its weights."""

    num_tokens: int
    width: int
    has_cls_token: bool


def encoder_names() -> list[str]:
    """Return the names of the registered encoders; `timm:MODEL` gives others."""
    return [*REGISTRY, *TIMM_NAMES]


def describe_encoder(name: str, resolution: int = 256) -> EncoderInfo:
    """Return the shapes that an encoder gives at a resolution; raises ConfigError for an unknown name."""
    entry, _ = _parse(name)
    return EncoderInfo(token_grid(resolution) ** 2, entry.width, entry.has_cls_token)


def load_encoder(
    name: str,
    weights: str | Path | None = None,
    resolution: int = 256,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> "Encoder":
    """Load a frozen encoder.

    `name` is one of `encoder_names()` or `timm:MODEL`, with `@block=N` for the tokens after block N of a vision
    transformer (counted from 1). `weights` is a published checkpoint file, a folder that holds it under REPA's
    name or its published one, or None to take it from the encoder's hub. `resolution` is the side of the images in
    pixels. `dtype` float16 or bfloat16 runs the network under autocast with float32 weights, as REPA does; None is
    float32. Raises ConfigError for a name, block, resolution or dtype that cannot work, WeightsError for weights
    that cannot be had or do not fit.
    """
    if dtype not in _PRECISIONS:
        raise ConfigError(f"an encoder cannot run in {dtype}: use float32, float16 or bfloat16")
    token_grid(resolution)
    entry, block = _parse(name)
    path = None if weights is None else Path(weights).expanduser()
    model = entry.weights.load(name, entry.architecture, entry.options, path)
    return Encoder(name, entry, model, block=block, resolution=resolution, device=torch.device(device), dtype=dtype)


class Encoder:
    """A frozen encoder; call it with images, uint8 [B, 3, R, R], for their `Tokens` on the encoder's device.

    `fingerprint` holds all that decides the tokens: architecture, weights, preprocessing, block, precision, grid.
    """

    def __init__(
        self,
        name: str,
        entry: EncoderEntry,
        model: nn.Module,
        *,
        block: int | None,
        resolution: int,
        device: torch.device,
        dtype: torch.dtype | None,
    ) -> None:
        self.name = name
        self.resolution = resolution
        self.width = entry.width
        self.num_tokens = token_grid(resolution) ** 2
        self.has_cls_token = entry.has_cls_token
        self._entry = entry
        self._index = block - 1 if block is not None else entry.stage
        self._size = entry.input_size(resolution)
        self._device = device
        self._dtype = None if dtype == torch.float32 else dtype
        digest = weights_sha256(model.state_dict())
        positions = _fit_to_input(model, self._size)
        self._model: Any = model.requires_grad_(False).eval().to(device)
        self.fingerprint: Fingerprint = {
            "encoder": name,
            "architecture": f"timm {entry.architecture}" + "".join(f" {k}={v}" for k, v in entry.options.items()),
            "weights_sha256": digest,
            "preprocessing": entry.preprocessing.describe(resolution, self._size),
            "input_size": self._size,
            "positions": positions,
            "block": _describe_block(entry, block),
            "token_grid": [token_grid(resolution)] * 2,
            "token_resampling": self._resampling(),
            "precision": "float32" if self._dtype is None else f"{_PRECISIONS[dtype]} autocast, float32 weights",
        }
        if entry.depth is None:
            self._model.to(memory_format=torch.channels_last)  # convolutions are faster for it, on CPUs too
            self.fingerprint["memory_format"] = "channels last"

    def compile(self) -> None:
        """Run the network through torch.compile; tokens then differ in rounding, which the fingerprint says."""
        self._model.forward_intermediates = torch.compile(self._model.forward_intermediates, dynamic=False)
        self.fingerprint["compiled"] = "torch.compile"

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tokens:
        """Encode images, uint8 [B, 3, R, R]; raises ConfigError for another type or size."""
        if images.dtype != torch.uint8 or images.shape[1:] != (3, self.resolution, self.resolution):
            raise ConfigError(
                f"{self.name} got images {images.dtype} {list(images.shape)}: "
                f"expected torch.uint8 [B, 3, {self.resolution}, {self.resolution}]"
            )
        pixels = self._entry.preprocessing(images.to(self._device, non_blocking=True), self._size)
        with self._precision():
            features, prefix = self._features(pixels)
        features = _resampled(features.float(), token_grid(self.resolution))
        patch_tokens = features.flatten(2).transpose(1, 2).contiguous()
        cls_token = prefix[:, 0].float().contiguous() if self.has_cls_token and prefix is not None else None
        return Tokens(patch_tokens, cls_token)

    def _features(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the feature map [B, D, h, w] and the prefix tokens [B, P, D] of the chosen block or stage."""
        options: dict[str, Any] = {
            "indices": [self._index],
            "norm": self._entry.final_norm,
            "stop_early": True,
            "intermediates_only": True,
        }
        if not self.has_cls_token:
            return self._model.forward_intermediates(pixels, **options)[0], None
        features, prefix = self._model.forward_intermediates(pixels, return_prefix_tokens=True, **options)[0]
        return features, prefix

    def _precision(self) -> AbstractContextManager[Any]:
        if self._dtype is not None:
            return torch.autocast(self._device.type, dtype=self._dtype)
        # cuDNN may otherwise round the inputs of float32 convolutions to TF32.
        return (
            torch.backends.cudnn.flags(enabled=True, allow_tf32=False) if self._device.type == "cuda" else nullcontext()
        )

    def _resampling(self) -> str:
        found, wanted = self._map_size(), token_grid(self.resolution)
        if found == wanted:
            return "none"
        return f"{found}x{found} to {wanted}x{wanted} (bilinear, antialiased, align_corners=False)"

    def _map_size(self) -> int:
        if self._entry.depth is not None:
            return self._size // self._entry.patch  # a plain transformer cuts its input into patches
        # What a hierarchical network's padding makes of its input has to be seen.
        with torch.no_grad():
            return self._features(torch.zeros(1, 3, self._size, self._size, device=self._device))[0].shape[-1]


def _parse(name: str) -> tuple[EncoderEntry, int | None]:
    """Split `NAME@block=N` into the name's entry and the block, counted from 1; the last block by default."""
    base, at, choice = name.partition("@")
    entry = find_entry(base)
    if not at:
        return entry, entry.depth
    match = re.fullmatch(r"block=(\d+)", choice)
    if match is None:
        raise ConfigError(f"encoder {name!r}: expected NAME@block=N after the name, found {at + choice!r}")
    block = int(match.group(1))
    if entry.depth is None:
        raise ConfigError(f"encoder {name!r}: {base} has no numbered blocks; leave out {at + choice!r}")
    if not 1 <= block <= entry.depth:
        raise ConfigError(f"encoder {name!r}: {base} has blocks 1 to {entry.depth}, not {block}")
    return entry, block


def _fit_to_input(model: Any, size: int) -> str:
    """Make a network take inputs of a size, and return what that did to its sense of position, in words."""
    if not hasattr(model, "set_input_size"):
        return "as timm does"
    before = _grid(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # timm's own, about its tensor operations
        model.set_input_size(img_size=(size, size))
    after = _grid(model)
    if before is None:
        return f"fitted by timm to {size} pixels"
    if before == after:
        return "as published"
    if getattr(model, "pos_embed", None) is None:
        return f"fitted by timm from {before} to {after}"
    return f"resampled from {before} to {after} (bicubic, antialiased)"


def _grid(model: Any) -> str | None:
    grid = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    return None if grid is None else "x".join(str(side) for side in grid)


def _describe_block(entry: EncoderEntry, block: int | None) -> str:
    if block is None:
        return f"feature map {entry.stage}, one vector in {entry.patch}x{entry.patch} pixels"
    norm = "after the final norm" if entry.final_norm else "before the final norm"
    return f"{block} of {entry.depth}, {norm}"


def _resampled(features: Tensor, grid: int) -> Tensor:
    if features.shape[-2:] == (grid, grid):
        return features
    return functional.interpolate(features, size=(grid, grid), mode="bilinear", align_corners=False, antialias=True)
