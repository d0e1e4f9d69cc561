"""What training and sampling need of a model, whatever its architecture."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class ModelConfig(Protocol):
    """What training and sampling read of a model's config."""

    @property
    def input_size(self) -> int:
        """Latents are [in_channels, input_size, input_size]."""

    @property
    def in_channels(self) -> int:
        """Channels of the latents."""

    @property
    def num_classes(self) -> int:
        """Number of classes without the null label, whose number this is."""

    @property
    def class_dropout_prob(self) -> float:
        """Above 0, the model has a null label."""

    @property
    def encoder_depth(self) -> int | None:
        """The block that the projectors read, counted from 1; None without projectors."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""


class DiffusionModel(nn.Module):
    """A model that maps (x_t, time, label) to the velocity, and to projected tokens per encoder.

    Set `checkpoint_blocks = True` to recompute every block's activations in the backward pass: less memory, about a
    third more compute.
    """

    config: ModelConfig
    blocks: nn.ModuleList  # sharded one by one
    projectors: nn.ModuleList  # frozen once alignment has ended
    guides_each_evaluation: ClassVar[bool] = False  # in sampling: see `guided`
    heads: tuple[str, ...] = ()  # names of submodules that terms of the objective have added, which sampling leaves out

    def __init__(self) -> None:
        super().__init__()
        self.checkpoint_blocks = False

    @abstractmethod
    def forward(self, x_t: Tensor, t: Tensor, labels: Tensor, project: bool = True) -> tuple[Tensor, list[Tensor]]:
        """Predict the velocity, like x_t, and the projected tokens; times are 0 at the data and 1 at the noise.

        Whatever a published model predicts, and in whatever direction its time runs, is converted here. A model with
        `taps` also takes an argument of that name: what else to return, as a dict by name in a third value. Nothing of
        it is computed unless asked for.
        """

    def target(self, x_t: Tensor, velocity: Tensor, data: Tensor, t: Tensor) -> Tensor:
        """Return what the predicted velocity is compared with in training.

        Args:
            x_t: the model's input [B, ...].
            velocity: that of the path, like x_t.
            data: like x_t.
            t: times [B].
        """
        return velocity

    @property
    def taps(self) -> tuple[str, ...]:
        """Names of what else the model can return."""
        return ()

    def hidden_states(
        self, x_t: Tensor, t: Tensor, labels: Tensor, blocks: Collection[int], groups: Tensor | None = None
    ) -> list[Tensor]:
        """Return the tokens after the given blocks, counted from 1, without running later ones: see `SiT`."""
        raise NotImplementedError

    @property
    def latents_shape(self) -> tuple[int, int, int]:
        """Shape [C, H, W] of the latents of one sample."""
        return (self.config.in_channels, self.config.input_size, self.config.input_size)

    @property
    def state_shape(self) -> tuple[int, ...]:
        """Shape of one sample of x_t, the noise that samplers start from."""
        return self.latents_shape

    @property
    def noise_scale(self) -> float:
        """Standard deviation of the noise at time 1."""
        return 1.0

    def latents_of(self, state: Tensor) -> Tensor:
        """Return the latents [B, C, H, W] of a state [B, *state_shape]."""
        return state

    def _run(self, block: nn.Module, *inputs: Any) -> Any:
        if self.checkpoint_blocks and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)
        return block(*inputs)


def velocity_from_data(x_t: Tensor, data: Tensor, t: Tensor, t_eps: float) -> Tensor:
    """Convert data to the velocity of the linear path, `(x_t - data) / max(t, t_eps)`.

    Args:
        x_t: [B, ...].
        data: predicted or true, like x_t.
        t: times [B].
        t_eps: smallest divisor; the published one is 0.05.
    """
    return (x_t - data) / t.clamp(min=t_eps).reshape(-1, *[1] * (x_t.ndim - 1))
