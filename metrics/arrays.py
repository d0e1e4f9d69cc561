"""What every metric here does with the arrays that it is given."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..errors import ConfigError

Array = Tensor | npt.NDArray[Any]


def as_tensor(values: Array) -> Tensor:
    """The values as a tensor, not copied if that can be helped."""
    if isinstance(values, np.ndarray) and not values.flags.writeable:
        values = values.copy()  # torch has no read-only tensors
    return torch.as_tensor(values).detach()


def as_features(values: Array, name: str) -> Tensor:
    """Check that the values are feature vectors, one a row, and return them as a tensor [N, D].

    Raises ConfigError for another shape, for no rows, and for numbers that are not finite.
    """
    features = as_tensor(values)
    if features.ndim != 2 or 0 in features.shape:
        raise ConfigError(
            f"{name}: an array of shape {list(features.shape)}, but features are [images, width]; "
            "flatten each image's features into one row"
        )
    if not features.sum(dtype=torch.float64).isfinite():  # one NaN or infinity makes the sum one
        raise ConfigError(
            f"{name}: some features are NaN or infinite; look for broken images, or run the detector in float32"
        )
    return features


def check_same_width(a: Tensor, b: Tensor, names: str) -> None:
    """Raise ConfigError unless both hold vectors of the same width."""
    if a.shape[-1] != b.shape[-1]:
        raise ConfigError(
            f"{names}: widths {a.shape[-1]} and {b.shape[-1]}; both sides must come from the same detector"
        )


def working_dtype(*features: Tensor) -> torch.dtype:
    """Float64 if all the features have it, float32 otherwise."""
    return torch.float64 if all(f.dtype == torch.float64 for f in features) else torch.float32


@contextmanager
def full_float32() -> Iterator[None]:
    """Switch TensorFloat-32 off inside, whatever training has set, and restore it.

    TF32 keeps 10 bits: enough to train with, too few for the distances and features that a published number
    is made of.
    """
    if hasattr(torch.backends.cuda.matmul, "fp32_precision"):  # torch 2.9 and later
        cudnn: Any = torch.backends.cudnn  # its stubs lack `conv`
        places: list[tuple[Any, str]] = [
            (torch.backends.cuda.matmul, "fp32_precision"),
            (cudnn.conv, "fp32_precision"),
        ]
        exact: Any = "ieee"
    else:
        places = [(torch.backends.cuda.matmul, "allow_tf32"), (torch.backends.cudnn, "allow_tf32")]
        exact = False
    before = [getattr(*place) for place in places]
    try:
        for place in places:
            setattr(*place, exact)
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            setattr(*place, value)
