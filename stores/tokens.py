"""Patch tokens as the encoder produced them, for any codec."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from . import Store
from .codecs import TOKEN_SCALE, TOKENS, Codec, codec_from_attributes


def codec_of(store: Store, group: str) -> Codec:
    """Return the codec of a features group."""
    attributes = store.group(group).attributes
    return codec_from_attributes(attributes["codec"], attributes["num_tokens"], attributes["width"])


def read_tokens(
    store: Store, group: str, rows: npt.NDArray[np.int64], flipped: npt.NDArray[np.bool_] | None = None
) -> Tensor:
    """Read and decode the tokens of the samples `rows`, with their lengths: `[B, N, D]` float32.

    Those where `flipped` `[B]` is true are of the flipped view.
    """
    codec = codec_of(store, group)
    names = [f"{group}/{array.name}" for array in codec.arrays]
    arrays = {name: torch.from_numpy(array) for name, array in store.read(names, rows, flipped=flipped).items()}
    return codec.decode(arrays[f"{group}/{TOKENS}"], arrays.get(f"{group}/{TOKEN_SCALE}"))
