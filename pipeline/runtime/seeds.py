"""The random streams of the pipeline: functions of the seed and of a step or an image, never of rank or batch size.

Streams of a training step are drawn on the training device, those of an image on the CPU. The order of training samples
is drawn in `stores/order.py`.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch


class Stream(IntEnum):
    """Streams of a training step; the values are offsets in the seed and must not change."""

    STEP = 0  # times, noise, posterior, dropped labels, in this order
    CLASS_TOKEN = 1 << 31  # separate, so that class tokens do not change any other draw


VALIDATION_STEPS = 1 << 30  # validation batch i draws as if it were this step plus i, which no training reaches


def step_generator(seed: int, step: int, device: torch.device, stream: Stream = Stream.STEP) -> torch.Generator:
    """Return the generator of one stream of training step `step`, on `device`."""
    import torch

    return torch.Generator(device).manual_seed((seed << 32) + stream + step)


def image_generator(seed: int, index: int) -> torch.Generator:
    """Return the CPU generator of image `index`. It draws the initial noise first, then the noise of each SDE step."""
    import torch

    return torch.Generator().manual_seed((seed << 32) + index)


def image_label(seed: int, index: int, num_classes: int) -> int:
    """Return the random label of generated image `index`, from 0 to `num_classes` - 1."""
    raw = np.random.Philox(counter=[0, 0, 0, index], key=seed).random_raw()
    return int(raw % num_classes)


def shuffled(values: npt.NDArray[np.int64], seed: int) -> npt.NDArray[np.int64]:
    """Return `values` in random order, an argsort of raw Philox output, whose stream numpy guarantees permanently."""
    return values[np.argsort(np.random.Philox(key=seed).random_raw(len(values)), kind="stable")]
