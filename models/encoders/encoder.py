"""Running an encoder: from a name to a frozen network, from uint8 images to tokens on SiT's grid."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...errors import ConfigError
from ..precision import autocast_dtype, precision_name
from ..weight_files import weights_sha256
from .entry import EncoderEntry, token_grid
from .registry import REGISTRY, TIMM_NAMES, is_of_timm, parse_name
from .sizes import require_encoder_resolution, set_input_size
from .token_choice import TokenChoice

Fingerprint = dict[str, str | int | float | list[int]]


@dataclass(frozen=True, slots=True)
class Tokens:
    """An encoder's output, float32: `patch_tokens` [B, N, D] in row-major order, `cls_token` [B, D] or None."""

    patch_tokens: Tensor
    cls_token: Tensor | None


@dataclass(frozen=True, slots=True)
class EncoderInfo:
    """The shapes of an encoder's output, known without its weights."""

    num_tokens: int
    width: int
    has_cls_token: bool


def encoder_names() -> list[str]:
    """Return the names of the registered encoders. `timm:MODEL` is any other timm network."""
    return [*REGISTRY, *TIMM_NAMES]


def describe_encoder(name: str, resolution: int = 256) -> EncoderInfo:
    """Return the shapes of an encoder's output at a resolution.

    Raises:
        ConfigError: the name, block or resolution is not valid.
    """
    entry, _ = parse_name(name)
    return EncoderInfo(token_grid(resolution) ** 2, entry.width, entry.has_cls_token)


def load_encoder(
    name: str,
    weights: str | Path | None = None,
    resolution: int = 256,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> "Encoder":
    """Load a frozen encoder.

    Args:
        name: one of `encoder_names()` or `timm:MODEL`, optionally with what `token_choice` reads after an `@`: for
            a vision transformer, `@block=N` for the tokens after block N (counted from 1).
        weights: a published checkpoint file, or a folder that holds it under REPA's name or its published name; None
            downloads it from the encoder's hub.
        resolution: side of the images in pixels, a multiple of 16.
        device: where the encoder runs.
        dtype: None or float32 for float32; float16 or bfloat16 for autocast with float32 weights, as in REPA.

    Raises:
        ConfigError: the name, block, resolution or dtype is not valid, or the network does not accept this resolution.
        WeightsError: the weights are not available, cannot be read or do not fit.
    """
    dtype = autocast_dtype(dtype, "an encoder")
    token_grid(resolution)
    entry, choice = parse_name(name)
    if is_of_timm(name):
        require_encoder_resolution(name, resolution)
    path = None if weights is None else Path(weights).expanduser()
    model = entry.weights.load(name, entry.architecture, entry.options, path)
    return Encoder(name, entry, model, choice=choice, resolution=resolution, device=torch.device(device), dtype=dtype)


class Encoder:
    """A frozen encoder. Call it with images, uint8 [B, 3, R, R], to get their `Tokens` on the encoder's device.

    `fingerprint` holds everything that the tokens depend on: architecture, weights, preprocessing, block, precision,
    token grid.
    """

    def __init__(
        self,
        name: str,
        entry: EncoderEntry,
        model: nn.Module,
        *,
        choice: TokenChoice,
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
        self._choice = choice
        self._indices = choice.indices or [entry.last_index]
        self._input_size = entry.input_size(resolution)
        self._device = device
        self._dtype = dtype
        digest = weights_sha256(model.state_dict())
        positions = _set_input_size(model, self._input_size)
        if choice.plain_norm:
            model.norm = _without_weights(model.norm)
        self._model: Any = model.requires_grad_(False).eval().to(device)
        self.fingerprint: Fingerprint = {
            "encoder": name,
            "architecture": f"timm {entry.architecture}" + "".join(f" {k}={v}" for k, v in entry.options.items()),
            "weights_sha256": digest,
            "preprocessing": entry.preprocessing.describe(resolution, self._input_size),
            "input_size": self._input_size,
            "positions": positions,
            "block": _describe_block(entry, choice),
            "token_grid": [token_grid(resolution)] * 2,
            "token_resampling": self._describe_resampling(),
            "precision": "float32" if dtype is None else f"{precision_name(dtype)} autocast, float32 weights",
        }
        if entry.depth is None:
            self._model.to(memory_format=torch.channels_last)  # faster convolutions, also on CPUs
            self.fingerprint["memory_format"] = "channels last"

    def compile(self) -> None:
        """Run the network through torch.compile. Tokens then differ by rounding, so the fingerprint records it."""
        self._model.forward_intermediates = torch.compile(self._model.forward_intermediates, dynamic=False)
        self.fingerprint["compiled"] = "torch.compile"

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tokens:
        """Encode images, uint8 [B, 3, R, R].

        Raises:
            ConfigError: the images have another dtype or size.
        """
        if images.dtype != torch.uint8 or images.shape[1:] != (3, self.resolution, self.resolution):
            raise ConfigError(
                f"images for {self.name}: expected torch.uint8 [B, 3, {self.resolution}, {self.resolution}], "
                f"found {images.dtype} {list(images.shape)}"
            )
        pixels = self._entry.preprocessing(images.to(self._device, non_blocking=True), self._input_size)
        with self._precision():
            features, prefix = self._features(pixels)
        features = _resample(features.float(), token_grid(self.resolution))
        patch_tokens = features.flatten(2).transpose(1, 2).contiguous()
        cls_token = prefix[:, 0].float().contiguous() if self.has_cls_token and prefix is not None else None
        return Tokens(patch_tokens, cls_token)

    def _features(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the feature map [B, D, h, w] and prefix tokens [B, P, D] of the selected block or stage."""
        options: dict[str, Any] = {
            "indices": self._indices,
            "norm": self._entry.final_norm and not self._choice.no_norm,
            "stop_early": True,
            "intermediates_only": True,
        }
        if not self.has_cls_token:
            return self._combined(self._model.forward_intermediates(pixels, **options)), None
        found = self._model.forward_intermediates(pixels, return_prefix_tokens=True, **options)
        return self._combined([features for features, _ in found]), found[-1][1]

    def _combined(self, maps: list[Tensor]) -> Tensor:
        """Combine the feature maps [B, D, h, w] of several layers as RAEv2 does."""
        if not self._choice.layers:
            return maps[0]
        mean = torch.stack([each.float() for each in maps]).mean(dim=0)
        if self._entry.layer_rule == "mean":
            return mean
        return mean + maps[-1].float().mean(dim=(2, 3), keepdim=True)

    def _precision(self) -> AbstractContextManager[Any]:
        if self._dtype is not None:
            return torch.autocast(self._device.type, dtype=self._dtype)
        if self._device.type == "cuda":  # cuDNN may otherwise round the inputs of float32 convolutions to TF32
            return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
        return nullcontext()

    def _describe_resampling(self) -> str:
        found, wanted = self._map_size(), token_grid(self.resolution)
        if found == wanted:
            return "none"
        return f"{found}x{found} to {wanted}x{wanted} (bilinear, antialiased, align_corners=False)"

    def _map_size(self) -> int:
        """Return the side of the network's feature map."""
        if self._entry.depth is not None:
            return self._input_size // self._entry.patch
        # A hierarchical network pads its input, so the size has to be measured.
        with torch.no_grad():
            pixels = torch.zeros(1, 3, self._input_size, self._input_size, device=self._device)
            return self._features(pixels)[0].shape[-1]


def _set_input_size(model: Any, size: int) -> str:
    """Make a network accept inputs of a size. Return, for the fingerprint, what that did to its position embedding."""
    if not hasattr(model, "set_input_size"):
        return "as timm does"
    before = _grid(model)
    set_input_size(model, size)
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


def _without_weights(norm: Any) -> nn.Module:
    """Return a layer norm like this one, without weight and bias."""
    assert isinstance(norm, nn.LayerNorm)
    return nn.LayerNorm(norm.normalized_shape, norm.eps, elementwise_affine=False)


def _describe_block(entry: EncoderEntry, choice: TokenChoice) -> str:
    """Return the fingerprint's description of the block or feature map. Its wording must not change."""
    if choice.block is None:
        return f"feature map {entry.stage}, one vector in {entry.patch}x{entry.patch} pixels"
    norm = "after the final norm" if entry.final_norm and not choice.no_norm else "before the final norm"
    if choice.plain_norm:
        norm = f"{norm} without weight and bias"
    if choice.layers:
        blocks = ", ".join(str(layer + 1) for layer in choice.layers)
        extra = " plus the mean over the tokens of the last" if entry.layer_rule == "mean and global" else ""
        return f"mean of {blocks} of {entry.depth}{extra}, {norm}"
    return f"{choice.block} of {entry.depth}, {norm}"


def _resample(features: Tensor, grid: int) -> Tensor:
    if features.shape[-2:] == (grid, grid):
        return features
    return functional.interpolate(features, size=(grid, grid), mode="bilinear", align_corners=False, antialias=True)
