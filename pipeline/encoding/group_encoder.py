"""The interface of the models in an encode run: crops in, arrays of one group out."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Protocol

import numpy.typing as npt
import torch

from ...stores.layout import FLIPPED, GroupSpec
from .activity import ModelClock


@dataclass(frozen=True, slots=True)
class EncodedBatch:
    """The arrays of one group for a batch, how well its codec preserves tokens, and which rows overflowed."""

    arrays: dict[str, npt.NDArray[Any]]  # by array name: [B, *sample_shape]
    token_cosine: npt.NDArray[Any] | None = None  # [n] float32: tokens compared with restored tokens
    float32_rows: tuple[int, ...] = ()  # of the batch: these overflowed in half precision and were encoded in float32
    clocks: tuple[ModelClock, ...] = ()  # of the passes through the model


class GroupEncoder(Protocol):
    """A model that turns crops into the arrays of one group."""

    spec: GroupSpec

    def __call__(self, crops: torch.Tensor) -> EncodedBatch:
        """Encode crops, uint8 `[B, 3, R, R]`."""


class WithFlips:
    """A group encoder that also encodes the mirror image of every crop, into arrays with the suffix `_flipped`."""

    def __init__(self, encoder: GroupEncoder) -> None:
        self._encoder = encoder
        arrays = encoder.spec.arrays
        flipped = tuple(dataclasses.replace(array, name=array.name + FLIPPED) for array in arrays)
        self.spec = dataclasses.replace(encoder.spec, arrays=arrays + flipped)

    def __call__(self, crops: torch.Tensor) -> EncodedBatch:
        """Encode crops and their mirror images."""
        mirrored = self._encoder(crops.flip(-1))
        flipped = {name + FLIPPED: array for name, array in mirrored.arrays.items()}
        plain = self._encoder(crops)
        rows = sorted({*plain.float32_rows, *mirrored.float32_rows})
        return dataclasses.replace(
            plain,
            arrays=plain.arrays | flipped,
            float32_rows=tuple(rows),
            clocks=(*plain.clocks, *mirrored.clocks),
        )
