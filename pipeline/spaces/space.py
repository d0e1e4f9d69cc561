"""The interface of a space. The training loop and the objective know nothing else of what x0 is made of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from torch import Tensor, nn

from ...diffusion.normalization import Normalization
from ...stores import Batch


class Space(nn.Module, ABC):
    """The latents that a model is trained on. Statistics are buffers, which move with the module."""

    draws_posterior: ClassVar[bool]  # whether `data` needs standard normal draws

    @abstractmethod
    def stored(self, batch: Batch) -> Tensor:
        """Return what a batch holds of the latents, `[B, …]`, on the device of the batch."""

    @abstractmethod
    def shape(self, stored: Tensor) -> tuple[int, ...]:
        """Return the shape `(C, h, w)` of the latents of a sample."""

    @abstractmethod
    def data(self, stored: Tensor, posterior: Tensor | None) -> Tensor:
        """Return x0, float32 `[B, C, h, w]`.

        Args:
            stored: the result of `stored`, or some of its rows.
            posterior: standard normal draws `[B, C, h, w]` if `draws_posterior`.
        """

    @property
    def normalization(self) -> Normalization | None:
        """Return the statistics that decoding undoes, if they are not scale and bias of the store."""
        return None

    def checkpoint(self) -> dict[str, Any]:
        """Return what a checkpoint has to hold, besides the metadata of the store, to decode latents."""
        return {}
