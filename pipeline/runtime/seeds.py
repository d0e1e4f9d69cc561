"""The random streams of the pipeline: functions of the seed and of a step or an image, never of rank or batch size.

A stream is keyed by (seed, purpose, step or image), which Philox turns into the state of a torch generator: all bits of
the seed count, on the CPU and on a GPU. Streams of a training step are drawn on the training device, those of an image
on the CPU. The order of training samples is drawn in `stores/order.py`.

Version 1 passed `(seed << 32) + step` to torch, whose CPU generator keeps only the low 32 bits: there, seeds made no
difference. Runs started with it resume with it (`RandomStreams.version`).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

STREAMS_VERSION = 2
"""Version of the streams, recorded in checkpoints and with generated images. No record means 1."""


class Stream(IntEnum):
    """The purpose of a stream. The values are part of its key and must not change; 0 is that of `stores/order.py`."""

    STEP = 1  # times, noise, posterior, dropped labels, in this order
    CLASS_TOKEN = 2  # separate, so that class tokens do not change any other draw
    IMAGE = 3  # initial noise, then the noise of each SDE step
    LABEL = 4
    WEIGHTS = 5  # initial weights of a model
    # of the terms of the objective and of times per token, one each, so that none changes the draws of another
    TEACHER = 6
    PARTNER = 7
    TOKEN_TIMES = 8
    ROUTING = 9  # tokens and paths that SR-DiT drops


VALIDATION_STEPS = 1 << 30  # validation batch i draws as if it were this step plus i, which no training reaches

_VERSION_1_OFFSETS = {Stream.STEP: 0, Stream.CLASS_TOKEN: 1 << 31, Stream.IMAGE: 0}


@dataclass(slots=True)
class RandomStreams:
    """The streams of a training run or of a set of images.

    Attributes:
        seed: the seed, 0 to 2^63 - 1.
        version: version of the streams.
    """

    seed: int
    version: int = STREAMS_VERSION

    def generator(self, stream: Stream, index: int, device: torch.device) -> torch.Generator:
        """Return the generator of a stream of step or image `index`, on `device`."""
        import torch

        generator = torch.Generator(device)
        if self.version == 1:
            return generator.manual_seed((self.seed << 32) + _VERSION_1_OFFSETS[stream] + index)
        _seed_generator(generator, _philox(self.seed, stream, index))
        return generator

    def of_image(self, index: int) -> torch.Generator:
        """Return the CPU generator of image `index`."""
        import torch

        return self.generator(Stream.IMAGE, index, torch.device("cpu"))


def seed_weights(seed: int) -> None:
    """Seed torch's default generators, from which the initial weights of models are drawn."""
    import torch

    random = _philox(seed, Stream.WEIGHTS, 0)
    torch.manual_seed(int(random.random_raw()))
    _seed_generator(torch.default_generator, random)


def image_label(seed: int, index: int, num_classes: int) -> int:
    """Return the random label of generated image `index`, from 0 to `num_classes` - 1."""
    return int(_philox(seed, Stream.LABEL, index).random_raw() % num_classes)


def shuffled(values: npt.NDArray[np.int64], seed: int) -> npt.NDArray[np.int64]:
    """Return `values` in random order, an argsort of raw Philox output, whose stream numpy guarantees permanently."""
    return values[np.argsort(np.random.Philox(key=seed).random_raw(len(values)), kind="stable")]


def _philox(seed: int, stream: Stream, index: int) -> np.random.Philox:
    """Return the Philox stream of a key; keys are unique for seeds below 2^64 and indices below 2^48."""
    return np.random.Philox(key=np.array([seed, (stream << 48) + index], dtype=np.uint64))


def _seed_generator(generator: torch.Generator, random: np.random.Philox) -> None:
    """Seed a generator with Philox output: all 624 words of a CPU generator, the 64-bit seed of another device."""
    import torch

    if generator.device.type != "cpu":
        generator.manual_seed(int(random.random_raw()))
        return
    state = torch.Generator().get_state().numpy()  # of a fresh generator, which draws all its words again
    state[_mersenne_words()].view(np.uint64)[:] = random.random_raw(312).view(np.uint32)
    generator.set_state(torch.from_numpy(state))


@cache
def _mersenne_words() -> slice:
    """Return the bytes of the 624 words in the state of torch's CPU generator, a Mersenne Twister like numpy's."""
    import torch

    words = slice(24, 24 + 624 * 8)
    expected = np.random.RandomState(5489).get_state(legacy=False)["state"]["key"]
    found = torch.Generator().manual_seed(5489).get_state().numpy()[words].view(np.uint64)
    if not np.array_equal(found, expected):
        raise RuntimeError(f"torch {torch.__version__} stores the state of its CPU generator in an unknown layout")
    return words
