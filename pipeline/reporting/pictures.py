"""Pictures of a report: compressed to a budget, held in the page itself, and patch tokens turned into colors."""

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from ...errors import ConfigError

QUALITY = 85
SHRINK = 0.9  # at most, of the side
SMALLEST_SIDE = 32


@dataclass(frozen=True, slots=True)
class Picture:
    """An image as the page holds it."""

    uri: str
    alt: str
    width: int
    height: int
    caption: str = ""
    pixelated: bool = False  # few large pixels: shown with sharp edges


def photograph(image: Image.Image, alt: str, side: int, max_bytes: int, caption: str = "") -> Picture:
    """A WebP of at most `side` pixels and `max_bytes` bytes: what does not fit is scaled down until it does."""
    shown = image.convert("RGB")
    while True:
        shown.thumbnail((side, side), Image.Resampling.LANCZOS)
        data = _encode(shown, "WEBP", quality=QUALITY, method=4)
        if len(data) <= max_bytes or side <= SMALLEST_SIDE:
            return Picture(_uri(data, "webp"), alt, *shown.size, caption)
        side = int(max(shown.size) * min(SHRINK, math.sqrt(max_bytes / len(data))))


def read_photograph(path: Path, alt: str, side: int, max_bytes: int) -> Picture:
    """The same of a file; ConfigError when it cannot be read."""
    try:
        with Image.open(path) as image:
            return photograph(image, alt, side, max_bytes)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read as a picture ({error}): sample again, or delete it") from error


def token_picture(pixels: npt.NDArray[np.uint8], alt: str) -> Picture:
    """A lossless picture of one pixel a token; `pixels` uint8 `[rows, columns, 3]`."""
    image = Image.fromarray(pixels)
    return Picture(_uri(_encode(image, "PNG", optimize=True), "png"), alt, *image.size, pixelated=True)


def tokens_to_colors(tokens: Tensor) -> tuple[npt.NDArray[np.uint8], float]:
    """Patch tokens `[S, N, D]` as colors uint8 `[S, N, 3]`, and the share of their variance that is shown.

    Tokens are scaled to length 1, which is all that the alignment loss sees. The three leading principal components
    over the tokens of all S samples together become red, green and blue, each from its 1st to its 99th percentile;
    so equal colors mean similar tokens, between samples too.
    """
    unit = torch.nn.functional.normalize(tokens.double(), dim=-1).flatten(0, 1)
    centered = unit - unit.mean(0)
    variances, directions = torch.linalg.eigh(centered.T @ centered)
    leading = directions[:, -3:].flip(1)
    largest = leading.abs().argmax(0, keepdim=True)
    values = centered @ (leading * leading.gather(0, largest).sign())  # a direction's sign is arbitrary: fix it
    low, high = values.quantile(0.01, dim=0), values.quantile(0.99, dim=0)
    levels = ((values - low) / (high - low).clamp_min(1e-12)).clamp(0, 1) * 255
    share = float(variances[-3:].sum() / variances.sum().clamp_min(1e-12))
    return levels.round().to(torch.uint8).view(*tokens.shape[:2], 3).numpy(), share


def psnr(image: npt.NDArray[np.uint8], other: npt.NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio of two uint8 images in decibels; infinite when they are equal."""
    error = float(np.mean((image.astype(np.float64) - other.astype(np.float64)) ** 2))
    return 10 * math.log10(255**2 / error) if error else math.inf


def _encode(image: Image.Image, file_format: str, **options: int | bool) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def _uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
