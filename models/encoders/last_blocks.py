"""The attention of an encoder's last blocks, recomputed from stored tokens: what HASTE aligns with (arXiv 2505.16792).

The maps of four blocks of DINOv2-B take 6.3 MB per image, their queries and keys 3.1 MB. The input of the first of
these blocks takes 0.4 MB, and the rest follows from it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...errors import ConfigError
from ..layers.attention import attention_logits
from ..weight_files import weights_sha256
from .registry import parse_name
from .token_choice import ATTENTION_BLOCKS


class QueriesKeys(NamedTuple):
    """Queries and keys of a block, straight from its projection."""

    query: Tensor  # [B, heads, 1 + N, head width]
    key: Tensor  # like query


class LastBlocks(nn.Module):
    """Frozen consecutive blocks of a DINOv2, from timm.

    Args:
        blocks: the blocks, in order.
        digest: that of the weights of the whole encoder, as in its fingerprint.
    """

    def __init__(self, blocks: Iterable[nn.Module], digest: str) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks).requires_grad_(False).eval()
        self.weights_sha256 = digest
        self._projected: list[Tensor] = []
        for block in self.blocks:
            block.attn.qkv.register_forward_hook(self._keep)  # type: ignore[union-attr]

    def _keep(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        self._projected.append(output)

    @property
    def num_heads(self) -> int:
        """Number of heads of each block."""
        number: int = self.blocks[0].attn.num_heads  # type: ignore[union-attr, assignment]
        return number

    @torch.no_grad()
    def forward(self, tokens: Tensor) -> list[QueriesKeys]:
        """Return queries and keys per block, computed in float32 (also under autocast).

        Args:
            tokens: the input of the first block [B, 1 + N, D], class token first, of any floating dtype.
        """
        *earlier, last = self.blocks
        self._projected = []
        with torch.autocast(tokens.device.type, enabled=False):
            tokens = tokens.float()
            for block in earlier:
                tokens = block(tokens)
            last.attn.qkv(last.norm1(tokens))  # type: ignore[union-attr, operator]
        found, self._projected = self._projected, []
        return [self._split(each) for each in found]

    def _split(self, projected: Tensor) -> QueriesKeys:
        """Return queries and keys of the output [B, 1 + N, 3 D] of a projection."""
        heads = projected.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return QueriesKeys(heads[0], heads[1])

    def logits(self, tokens: Tensor, heads: int) -> list[Tensor]:
        """Return the attention logits between patches per block, [B, heads, N, N] float32.

        The row and column of the class token are left out, so that a softmax is over patches only.

        Args:
            tokens: as for `forward`.
            heads: the first ones, in this number.
        """
        found = self(tokens)
        with torch.no_grad(), torch.autocast(tokens.device.type, enabled=False):
            return [attention_logits(query[:, :heads, 1:], key[:, :heads, 1:]) for query, key in found]


def load_last_blocks(name: str, weights: str | Path | None = None) -> LastBlocks:
    """Load the blocks that follow the tokens of an encoder such as `dinov2-vit-b@block=8+norm=none`, on the CPU.

    Args:
        name: the encoder, with `norm=none`.
        weights: as for `load_encoder`.

    Raises:
        ConfigError: the name is not valid, or its tokens are not those that a block reads.
        WeightsError: the weights are not available, cannot be read or do not fit.
    """
    entry, choice = parse_name(name)
    if not choice.no_norm or choice.block is None:
        raise ConfigError(f"encoder {name!r}: attention is recomputed from tokens of NAME@block=N+norm=none")
    path = None if weights is None else Path(weights).expanduser()
    model: Any = entry.weights.load(name, entry.architecture, entry.options, path)
    digest = weights_sha256(model.state_dict())
    return LastBlocks(model.blocks[choice.block : choice.block + ATTENTION_BLOCKS], digest)
