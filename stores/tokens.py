"""Patch tokens as the encoder gave them, whatever codec they are stored with."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from . import Store
from .codecs import TOKEN_SCALE, TOKENS, Codec, codec_from_attributes


def codec_of(store: Store, group: str) -> Codec:
    """The codec of a features group."""
    attributes = store.group(group).attributes
    return codec_from_attributes(attributes["codec"], attributes["num_tokens"], attributes["width"])


def read_tokens(store: Store, group: str, rows: npt.NDArray[np.int64]) -> Tensor:
    """Tokens `[B, N, D]` float32 of the samples `rows`, with their lengths."""
    codec = codec_of(store, group)
    names = [f"{group}/{array.name}" for array in codec.arrays]
    arrays = {name: torch.from_numpy(array) for name, array in store.read(names, rows).items()}
    return codec.decode(arrays[f"{group}/{TOKENS}"], arrays.get(f"{group}/{TOKEN_SCALE}"))
