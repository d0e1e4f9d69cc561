"""REPA's and iREPA's projectors, which predict an encoder's patch tokens from a model's."""

from typing import Protocol

from torch import Tensor, nn

from .linear import linear


class ProjectorConfig(Protocol):
    """What projectors read of a model's config."""

    @property
    def hidden_size(self) -> int:
        """Width of the model's tokens."""

    @property
    def input_size(self) -> int:
        """Side of the latents."""

    @property
    def patch_size(self) -> int:
        """Side of the square of latents that is one token."""

    @property
    def projector(self) -> str:
        """The kind: "mlp" (REPA) or "conv" (iREPA)."""

    @property
    def projector_dim(self) -> int:
        """Width inside an MLP."""

    @property
    def projector_kernel_size(self) -> int:
        """Side of a convolution's kernel, odd."""


class ConvProjector(nn.Module):
    """iREPA's projector (arXiv 2512.10794): one convolution over the token grid, with zero padding.

    Maps tokens [B, N, D] of a square grid, in row-major order, to [B, N, z_dim]. Uses PyTorch's default initialization.
    """

    def __init__(self, config: ProjectorConfig, z_dim: int) -> None:
        super().__init__()
        self.grid_size = config.input_size // config.patch_size
        kernel = config.projector_kernel_size
        self.projection_layer = nn.Conv2d(config.hidden_size, z_dim, kernel_size=kernel, padding=kernel // 2)

    def forward(self, tokens: Tensor) -> Tensor:
        """Predict patch tokens [B, N, z_dim], each from a token and the neighbors that the kernel covers."""
        grid = tokens.transpose(1, 2).unflatten(2, (self.grid_size, self.grid_size))
        projected: Tensor = self.projection_layer(grid).flatten(2).transpose(1, 2)
        return projected


def make_projector(config: ProjectorConfig, z_dim: int) -> nn.Module:
    """Build REPA's or iREPA's projector, from tokens [B, N, D] to predicted patch tokens [B, N, z_dim]."""
    if config.projector == "conv":
        return ConvProjector(config, z_dim)
    return mlp_projector(config.hidden_size, config.projector_dim, z_dim)


def mlp_projector(width: int, inner: int, outputs: int) -> nn.Sequential:
    """Build REPA's projector of tokens [B, N, width], three linear layers with SiLU between them."""
    return nn.Sequential(linear(width, inner), nn.SiLU(), linear(inner, inner), nn.SiLU(), linear(inner, outputs))
