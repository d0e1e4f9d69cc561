"""REG: a SiT that denoises an encoder's class token together with the latents (arXiv 2507.01467).

The noised class token is prepended to the patches as one more token, and the model predicts the velocity of both. The
rest is SiT. Tensor names are those of the published code (github.com/Martinser/REG).
"""

import torch
from torch import Tensor, nn

from ..class_token import ClassTokenModel
from ..layers.embedders import unpatchify
from .config import SiTConfig
from .layers import FinalLayer
from .model import SiT


class EntangledSiT(ClassTokenModel, SiT):
    """A SiT whose x_t and velocity are [B, C * H * W + cls_dim].

    Projected tokens are [B, 1 + N, z_dim]: the class token's first, then the patches'.
    """

    def __init__(self, config: SiTConfig) -> None:
        super().__init__(config)
        assert config.cls_dim is not None
        width = config.hidden_size
        self.pos_embed = nn.Parameter(torch.cat([torch.zeros(1, 1, width), self.pos_embed], dim=1), requires_grad=False)
        self.cls_projectors2 = nn.Linear(config.cls_dim, width)
        nn.init.xavier_uniform_(self.cls_projectors2.weight)
        nn.init.zeros_(self.cls_projectors2.bias)
        self.wg_norm = nn.LayerNorm(width, eps=1e-6)
        self.final_layer = EntangledFinalLayer(config)

    @property
    def cls_dim(self) -> int:
        """Width of the class token."""
        assert self.config.cls_dim is not None
        return self.config.cls_dim

    def _embed(self, x_t: Tensor, t: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        latents, cls_token = self.unpack(x_t)
        first = self.wg_norm(self.cls_projectors2(cls_token)).unsqueeze(1)
        tokens = torch.cat([first, self.x_embedder(latents)], dim=1) + self.pos_embed
        return tokens, self._condition(t, labels, tokens.dtype)

    def _velocity(self, tokens: Tensor, condition: Tensor) -> Tensor:
        patches, cls_velocity = self.final_layer(tokens, condition)
        return self.pack(unpatchify(patches, self.config.patch_size), cls_velocity)


class EntangledFinalLayer(FinalLayer):
    """Tokens [B, 1 + N, D] to patches of the velocity and to the class token's velocity; zero-initialized."""

    def __init__(self, config: SiTConfig) -> None:
        super().__init__(config)
        assert config.cls_dim is not None
        self.linear_cls = nn.Linear(config.hidden_size, config.cls_dim)
        nn.init.zeros_(self.linear_cls.weight)
        nn.init.zeros_(self.linear_cls.bias)

    def forward(self, tokens: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Return patches [B, N, patch_size ** 2 * C] and the class token's velocity [B, cls_dim]."""
        modulated = self.modulated(tokens, condition)
        return self.linear(modulated[:, 1:]), self.linear_cls(modulated[:, 0])


def make_sit(config: SiTConfig) -> SiT:
    """Build the model that a config describes, with fresh weights."""
    return SiT(config) if config.cls_dim is None else EntangledSiT(config)
