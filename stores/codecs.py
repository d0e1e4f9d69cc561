"""Codecs: how patch tokens are stored and restored. docs/codecs.md has the formulas, for readers in other languages.

The alignment loss depends only on the direction of a token, so the quality of a codec is the cosine between the
original and the restored token. `float16` is the plain array. `int8` and `int4` first rotate every token, which spreads
its few outlier channels over all channels. The rotated coordinates are close to normally distributed, so one scale per
token and one table of levels suffice.

Encoding uses only elementwise float32 arithmetic in a fixed order, so codes do not depend on the device, the batch
size, TF32 or autocast. Decoding is a table lookup and one matrix product.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy.typing as npt
import torch

from ..errors import ConfigError, StoreError
from .layout import ArraySpec
from .rotation import Rotation

TOKENS = "tokens"
TOKEN_SCALE = "token_scale"

ROTATION_SEED = 0

# The largest coordinate of a token has code ±127, so its level is 127 · 2⁻⁵ ≈ 4. The scale is then about a quarter of
# that coordinate, which is close to the root mean square of the token.
INT8_STEP = 2.0**-5
PACKING = "low nibble first"

# Lloyd-Max levels of the standard normal distribution: J. Max, "Quantizing for minimum distortion", 1960.
_HALF_LEVELS = (0.12839503, 0.38804830, 0.65675912, 0.94234046, 1.25623120, 1.61804639, 2.06901723, 2.73258957)
NORMAL_LEVELS = (*(-level for level in reversed(_HALF_LEVELS)), *_HALF_LEVELS)


class Codec(ABC):
    """Converts the patch tokens `[num_tokens, width]` of a sample to stored arrays and back."""

    name: ClassVar[str]

    def __init__(self, num_tokens: int, width: int) -> None:
        if num_tokens < 1 or width < 1:
            raise ConfigError(
                f"cannot store {num_tokens} tokens of width {width}: expected at least 1 token of width 1"
            )
        self.num_tokens, self.width = num_tokens, width

    @property
    @abstractmethod
    def arrays(self) -> tuple[ArraySpec, ...]:
        """The stored arrays: "tokens", followed by "token_scale" if the tokens are quantized."""

    @property
    @abstractmethod
    def attributes(self) -> dict[str, Any]:
        """The complete recipe as JSON values, for the group's attribute "codec"; readers need nothing else."""

    @abstractmethod
    def encode(self, tokens: torch.Tensor) -> dict[str, npt.NDArray[Any]]:
        """Return the arrays to store, one per spec.

        Args:
            tokens: `[B, num_tokens, width]`, any floating-point dtype, any device.

        Raises:
            StoreError: a value is not finite or too large to store, or the shape is not the codec's.
        """

    @abstractmethod
    def decode(
        self, codes: torch.Tensor, token_scale: torch.Tensor | None = None, dtype: torch.dtype = torch.float32
    ) -> torch.Tensor:
        """Restore tokens `[B, num_tokens, width]` from the stored arrays, on their device.

        Args:
            codes: the array "tokens", `[B, …]`.
            token_scale: the array "token_scale", `[B, num_tokens]`. Without it, each quantized token has the right
                direction and an arbitrary length, which is sufficient for a cosine. Zero tokens are restored to zero
                in either case.
            dtype: of the result, and of the matrix product of quantized codecs.

        Raises:
            StoreError: shape or dtype of `codes` are not the codec's.
        """

    def _require_shape(self, tokens: torch.Tensor) -> None:
        if tokens.ndim != 3 or tokens.shape[1:] != (self.num_tokens, self.width) or not tokens.is_floating_point():
            raise StoreError(
                f"codec '{self.name}': expected floating-point tokens [B, {self.num_tokens}, {self.width}] from the "
                f"encoder, found {list(tokens.shape)} {tokens.dtype}"
            )

    def _require_codes(self, codes: torch.Tensor) -> None:
        spec = self.arrays[0]
        if codes.shape[1:] != spec.sample_shape or str(codes.dtype) != f"torch.{spec.dtype}":
            raise StoreError(
                f"codec '{self.name}': expected codes [B, {', '.join(map(str, spec.sample_shape))}] {spec.dtype}, "
                f"found {list(codes.shape)} {codes.dtype}"
            )


class Float16Codec(Codec):
    """Stores the tokens themselves: exact if the encoder ran in float16."""

    name = "float16"

    @property
    def arrays(self) -> tuple[ArraySpec, ...]:
        """One float16 array."""
        return (ArraySpec(name=TOKENS, sample_shape=(self.num_tokens, self.width), dtype="float16"),)

    @property
    def attributes(self) -> dict[str, Any]:
        """Name and width."""
        return {"name": self.name, "width": self.width}

    def encode(self, tokens: torch.Tensor) -> dict[str, npt.NDArray[Any]]:
        """Round to float16."""
        self._require_shape(tokens)
        stored = tokens.detach().half()
        _require_finite(stored, tokens, "use codec 'int8', which scales every token, or check the encoder's weights")
        return {TOKENS: stored.cpu().numpy()}

    def decode(
        self, codes: torch.Tensor, token_scale: torch.Tensor | None = None, dtype: torch.dtype = torch.float32
    ) -> torch.Tensor:
        """Cast to `dtype`. This codec has no `token_scale`."""
        self._require_codes(codes)
        return codes.to(dtype)


class QuantizedCodec(Codec):
    """Base of codecs with a rotation, integer codes, and one scale per token: token = scale · (levels @ R)."""

    def __init__(self, num_tokens: int, width: int, seed: int = ROTATION_SEED) -> None:
        super().__init__(num_tokens, width)
        self.rotation = Rotation(width, seed)
        self._matrices: dict[tuple[torch.device, torch.dtype], torch.Tensor] = {}

    def encode(self, tokens: torch.Tensor) -> dict[str, npt.NDArray[Any]]:
        """Return codes, and per token the scale that minimizes the squared error of the restored token."""
        self._require_shape(tokens)
        given, tokens = tokens, tokens.detach().float()
        _require_finite(tokens, given, "check the encoder's weights")
        # one sample at a time on a CPU, so that it fits into the cache
        parts = torch.split(tokens, 1 if tokens.device.type == "cpu" else max(1, len(tokens)))
        with torch.autocast(tokens.device.type, enabled=False):
            codes, scales, peaks = (torch.cat(found) for found in zip(*map(self._encode, parts), strict=True))
        _require_finite(scales, peaks, "check the encoder's weights")
        return {TOKENS: codes.cpu().numpy(), TOKEN_SCALE: scales.cpu().numpy()}

    def _encode(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return codes, scales `[B, N]` float16 and largest magnitudes `[B, N]`."""
        peak = tokens.abs().amax(-1)
        nonzero = peak > 0
        rotated = self.rotation.rotate(tokens / torch.where(nonzero, peak, 1.0)[..., None])
        codes, levels = self._quantize(rotated)
        # sums in float64, so that the rounded result does not depend on the order of addition
        fit = (levels * rotated).sum(-1, dtype=torch.float64) / levels.square().sum(-1, dtype=torch.float64)
        # the smallest positive float16 keeps the direction of a token whose scale would round to zero
        scale = (peak * fit).half().clamp_min(2.0**-24)
        return codes * nonzero[..., None], torch.where(nonzero, scale, 0.0), peak

    def decode(
        self, codes: torch.Tensor, token_scale: torch.Tensor | None = None, dtype: torch.dtype = torch.float32
    ) -> torch.Tensor:
        """Look up levels, rotate them back, and scale them. The matrix product uses `dtype`, also under autocast."""
        self._require_codes(codes)
        with torch.autocast(codes.device.type, enabled=False):
            tokens = self._levels(codes, dtype) @ self._matrix(codes.device, dtype)
        if token_scale is None:
            return tokens
        return tokens * token_scale.to(dtype)[..., None]

    @abstractmethod
    def _quantize(self, rotated: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the stored codes, and the levels `[B, N, D]` that they represent."""

    @abstractmethod
    def _levels(self, codes: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return the levels `[B, N, D]` of stored codes."""

    def _matrix(self, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        if (device, dtype) not in self._matrices:
            self._matrices[device, dtype] = torch.from_numpy(self.rotation.matrix()).to(device, dtype)
        return self._matrices[device, dtype]


class Int8Codec(QuantizedCodec):
    """Rotated coordinates in 255 uniform steps; the largest coordinate of each token has code ±127."""

    name = "int8"

    @property
    def arrays(self) -> tuple[ArraySpec, ...]:
        """One byte per channel."""
        return (
            ArraySpec(name=TOKENS, sample_shape=(self.num_tokens, self.width), dtype="int8"),
            ArraySpec(name=TOKEN_SCALE, sample_shape=(self.num_tokens,), dtype="float16"),
        )

    @property
    def attributes(self) -> dict[str, Any]:
        """Level = step · code."""
        return {"name": self.name, "width": self.width, "rotation": self.rotation.attributes, "step": INT8_STEP}

    def _quantize(self, rotated: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        peak = rotated.abs().amax(-1, keepdim=True)
        codes = torch.round(rotated / torch.where(peak > 0, peak, 1.0) * 127)
        return codes.to(torch.int8), codes * INT8_STEP

    def _levels(self, codes: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return codes.to(dtype) * INT8_STEP  # exact, also in bfloat16


class Int4Codec(QuantizedCodec):
    """Rotated coordinates divided by their root mean square, as the nearest of 16 levels; two codes per byte.

    No nonzero token has code 0 in every channel: code 0 stands for values below -2.4, and the root mean square of the
    values is 1. A sample of zero bytes can therefore decode to zero tokens.
    """

    name = "int4"

    def __init__(
        self, num_tokens: int, width: int, seed: int = ROTATION_SEED, levels: tuple[float, ...] = NORMAL_LEVELS
    ) -> None:
        if width % 2:
            raise ConfigError(
                f"codec 'int4' stores two channels per byte: expected an even width, found {width}; use 'int8'"
            )
        if len(levels) != 16:
            raise ConfigError(f"codec 'int4': expected 16 levels, found {len(levels)}")
        super().__init__(num_tokens, width, seed)
        self.levels = levels
        self._tables: dict[tuple[torch.device, torch.dtype], torch.Tensor] = {}

    @property
    def arrays(self) -> tuple[ArraySpec, ...]:
        """Half a byte per channel."""
        return (
            ArraySpec(name=TOKENS, sample_shape=(self.num_tokens, self.width // 2), dtype="uint8"),
            ArraySpec(name=TOKEN_SCALE, sample_shape=(self.num_tokens,), dtype="float16"),
        )

    @property
    def attributes(self) -> dict[str, Any]:
        """Level = levels[code]; byte i = code of channel 2i + 16 · code of channel 2i + 1."""
        return {
            "name": self.name,
            "width": self.width,
            "rotation": self.rotation.attributes,
            "levels": list(self.levels),
            "packing": PACKING,
        }

    def _quantize(self, rotated: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rms = rotated.square().mean(-1, keepdim=True, dtype=torch.float64).sqrt().float()
        levels = torch.tensor(self.levels, device=rotated.device)
        unit = rotated / torch.where(rms > 0, rms, 1.0)
        codes = torch.bucketize(unit, (levels[1:] + levels[:-1]) / 2, out_int32=True)
        packed = codes[..., 0::2] | codes[..., 1::2] << 4
        return packed.to(torch.uint8), levels[codes]

    def _levels(self, codes: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        pairs = torch.nn.functional.embedding(codes.int(), self._table(codes.device, dtype)).flatten(-2)
        return pairs * (codes != 0).any(-1, keepdim=True)

    def _table(self, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        """Return both levels of every byte, `[256, 2]`."""
        if (device, dtype) not in self._tables:
            levels = torch.tensor(self.levels, device=device, dtype=dtype)
            high, low = torch.cartesian_prod(levels, levels).unbind(1)
            self._tables[device, dtype] = torch.stack((low, high), 1)
        return self._tables[device, dtype]


_CODECS: dict[str, type[Codec]] = {codec.name: codec for codec in (Float16Codec, Int8Codec, Int4Codec)}
CODEC_NAMES = tuple(_CODECS)


def make_codec(name: str, num_tokens: int, width: int) -> Codec:
    """Create a codec for tokens `[num_tokens, width]`.

    Raises:
        ConfigError: the name is unknown, or the codec cannot store this width.
    """
    if name not in _CODECS:
        raise ConfigError(f"unknown codec '{name}'; expected one of {', '.join(CODEC_NAMES)}")
    return _CODECS[name](num_tokens, width)


def codec_from_attributes(attributes: dict[str, Any], num_tokens: int, width: int) -> Codec:
    """Create the codec that a group's attribute "codec" describes.

    Raises:
        StoreError: this version cannot restore the recipe, or the recipe has another width.
    """
    try:
        codec = _from_recipe(attributes, num_tokens, width)
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(f"the group's attribute 'codec' is not a valid recipe ({error!r}): {attributes}") from error
    if codec.attributes != attributes:
        raise StoreError(
            f"the group has tokens of width {width} and the codec {attributes}; this version of repa-pipe restores "
            f"{codec.attributes}: install the version that wrote the store"
        )
    return codec


def _from_recipe(attributes: dict[str, Any], num_tokens: int, width: int) -> Codec:
    if attributes["name"] == Int8Codec.name:
        return Int8Codec(num_tokens, width, attributes["rotation"]["seed"])
    if attributes["name"] == Int4Codec.name:
        return Int4Codec(num_tokens, width, attributes["rotation"]["seed"], tuple(attributes["levels"]))
    return make_codec(attributes["name"], num_tokens, width)


def _require_finite(stored: torch.Tensor, tokens: torch.Tensor, remedy: str) -> None:
    """Raise StoreError unless `stored`, the stored form of `tokens` `[B, N, …]`, is finite."""
    finite = torch.isfinite(stored)
    if bool(finite.all()):
        return
    position = (~finite).nonzero()[0].tolist()
    value = float(tokens[tuple(position)])
    found = f"token {position[1]} of sample {position[0]} of the batch contains {value:.6g}"
    if math.isfinite(value):
        raise StoreError(f"{found}, too large to store: {remedy}")
    raise StoreError(f"{found}: encode in bfloat16 or float32, or check the encoder's weights")
