"""Images of a report: compressed to a size limit and embedded in the HTML file; patch tokens as colors."""

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ...errors import BadImageError, ConfigError
from ...sources.decode import decode_rgb

QUALITY = 85
MAX_SHRINK = 0.9  # each attempt reduces the side at least to this fraction
SMALLEST_SIDE = 32


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """An image as a data URI, with its `<img>` attributes."""

    uri: str
    alt: str
    width: int
    height: int
    caption: str = ""
    pixelated: bool = False  # few large pixels: scaled up without interpolation


def encode_image(image: Image.Image, alt: str, side: int, max_bytes: int, caption: str = "") -> EncodedImage:
    """Encode an image as WebP, scaled down to at most `side` pixels and further until it fits into `max_bytes`."""
    scaled = image.convert("RGB")
    while True:
        scaled.thumbnail((side, side), Image.Resampling.LANCZOS)
        data = _compress(scaled, "WEBP", quality=QUALITY, method=4)
        if len(data) <= max_bytes or side <= SMALLEST_SIDE:
            return EncodedImage(_data_uri(data, "webp"), alt, *scaled.size, caption)
        side = int(max(scaled.size) * min(MAX_SHRINK, math.sqrt(max_bytes / len(data))))


def read_image(path: Path, alt: str, side: int, max_bytes: int) -> EncodedImage:
    """Read an image file and encode it as `encode_image` does; ConfigError when it cannot be read."""
    try:
        return encode_image(decode_rgb(path.read_bytes()), alt, side, max_bytes)
    except (OSError, BadImageError) as error:
        raise ConfigError(
            f"{path} cannot be read as an image ({error}): delete it to omit it from the report"
        ) from error


def encode_token_colors(pixels: npt.NDArray[np.uint8], alt: str) -> EncodedImage:
    """Encode token colors, uint8 `[rows, columns, 3]`, as a lossless PNG with one pixel per token."""
    image = Image.fromarray(pixels)
    return EncodedImage(_data_uri(_compress(image, "PNG", optimize=True), "png"), alt, *image.size, pixelated=True)


def tokens_to_colors(tokens: npt.NDArray[np.floating[Any]]) -> tuple[npt.NDArray[np.uint8], float]:
    """Map patch tokens to colors by principal component analysis.

    Tokens are normalized to length 1, since the alignment loss does not depend on their length. Their three leading
    principal components, computed over all S samples together, become red, green and blue; each channel spans the 1st
    to 99th percentile. Equal colors therefore indicate similar tokens, also in different samples.

    Args:
        tokens: patch tokens `[S, N, D]`.

    Returns:
        Colors uint8 `[S, N, 3]`, and the fraction of the variance that the three components explain.
    """
    flat = tokens.reshape(-1, tokens.shape[-1]).astype(np.float64)
    unit = flat / np.linalg.norm(flat, axis=1, keepdims=True).clip(1e-12)
    centered = unit - unit.mean(0)
    variances, directions = np.linalg.eigh(centered.T @ centered)
    leading = directions[:, :-4:-1]
    largest = np.take_along_axis(leading, np.abs(leading).argmax(0, keepdims=True), 0)
    values = centered @ (leading * np.sign(largest))  # the sign of an eigenvector is arbitrary: fix it
    low, high = np.quantile(values, [0.01, 0.99], axis=0)
    levels = ((values - low) / (high - low).clip(1e-12)).clip(0, 1) * 255
    explained = float(variances[-3:].sum() / max(variances.sum(), 1e-12))
    return levels.round().astype(np.uint8).reshape(*tokens.shape[:2], 3), explained


def psnr(image: npt.NDArray[np.uint8], other: npt.NDArray[np.uint8]) -> float:
    """Return the peak signal-to-noise ratio of two uint8 images in dB; infinity when they are equal."""
    error = float(np.mean((image.astype(np.float64) - other.astype(np.float64)) ** 2))
    return 10 * math.log10(255**2 / error) if error else math.inf


def _compress(image: Image.Image, file_format: str, **options: int | bool) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def _data_uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
