"""Validation, dtypes and numerical precision that the metrics share."""

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
    """Return the values as a detached tensor, without a copy where possible."""
    if isinstance(values, np.ndarray) and not values.flags.writeable:
        values = values.copy()  # torch does not support read-only tensors
    return torch.as_tensor(values).detach()


def as_features(values: Array, name: str) -> Tensor:
    """Validate feature vectors and return them as a tensor [N, D].

    Raises:
        ConfigError: the array is empty or has another shape, or values are not finite. The message names `name`.
    """
    features = as_tensor(values)
    if features.ndim != 2 or 0 in features.shape:
        raise ConfigError(
            f"{name}: expected features [images, width], found shape {list(features.shape)}; "
            "flatten each image's features into one row"
        )
    if not features.sum(dtype=torch.float64).isfinite():  # the sum is not finite if any value is not
        raise ConfigError(
            f"{name}: some features are NaN or infinite; check for broken images, or run the detector in float32"
        )
    return features


def check_same_width(a: Tensor, b: Tensor, names: str) -> None:
    """Raise ConfigError unless both have the same last dimension."""
    if a.shape[-1] != b.shape[-1]:
        raise ConfigError(f"{names} have widths {a.shape[-1]} and {b.shape[-1]}; both must come from the same detector")


def working_dtype(*features: Tensor) -> torch.dtype:
    """Return float64 if all features are float64, else float32."""
    return torch.float64 if all(f.dtype == torch.float64 for f in features) else torch.float32


@contextmanager
def full_float32() -> Iterator[None]:
    """Disable TensorFloat-32 within the context, and restore the previous setting.

    TF32 keeps a 10-bit mantissa: enough for training, but not for the features and distances behind published numbers.
    """
    cudnn: Any = torch.backends.cudnn  # the type stubs lack `conv`
    settings: list[tuple[Any, str]] = [(torch.backends.cuda.matmul, "fp32_precision"), (cudnn.conv, "fp32_precision")]
    before = [getattr(*setting) for setting in settings]
    try:
        for setting in settings:
            setattr(*setting, "ieee")
        yield
    finally:
        for setting, value in zip(settings, before, strict=True):
            setattr(*setting, value)
