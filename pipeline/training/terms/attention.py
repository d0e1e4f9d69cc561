"""HASTE (arXiv 2505.16792): attention maps of the model are aligned with those of an encoder, until alignment ends.

The encoder's maps are recomputed in each step, by its own last blocks, from their stored input.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from ....diffusion.loss import attention_loss
from ....errors import StoreError
from ....models.encoders.last_blocks import LastBlocks, load_last_blocks
from ....models.sit.model import attention_tap
from ....stores import Batch
from ....stores.layout import features_group
from ....stores.tokens import codec_of
from ...runtime.distributed import DistributedContext
from .term import ModelOutput, Prepared, Term, TermContext

BLOCKS = (4, 5, 6, 7)  # of the model, counted from 0, each aligned with one of the last blocks of the encoder
HEADS = 12  # the first ones of both; fewer if one of them has fewer
BLOCK_INPUT = "block_input"


class AttentionTerm(Term):
    """Mean over blocks, samples, heads and queries of the cross-entropy of attention maps, times `--attn-coeff`.

    Raises:
        StoreError: the tokens in the store were computed with other weights than those of the encoder.
        WeightsError: the weights of the encoder are not available.
    """

    metric: ClassVar[str] = "attention_loss"

    def __init__(self, context: TermContext) -> None:
        self._config = context.config
        self._encoder = str(self._config.attn_encoder)
        self._codec = codec_of(context.store, features_group(self._encoder))
        self._blocks = self._load(context)

    def _load(self, context: TermContext) -> LastBlocks:
        blocks = load_last_blocks(self._encoder, self._config.attn_weights())
        group = context.store.group(features_group(self._encoder))
        stored = group.attributes["fingerprint"]["weights_sha256"]
        if stored != blocks.weights_sha256:
            raise StoreError(
                f"{context.store.location}: {group.path} was encoded with weights of SHA-256 {stored[:12]}, found "
                f"{blocks.weights_sha256[:12]}: pass the file that was used with --encoder-weights"
            )
        return blocks

    @property
    def taps(self) -> tuple[str, ...]:
        """The attention logits of the aligned blocks."""
        return tuple(map(attention_tap, BLOCKS))

    def prepare(self, batch: Batch, step: int, ranks: DistributedContext) -> Prepared:
        """Return the `block_input` [B, 1 + N, D], class token first; None if the batch holds no tokens."""
        if not batch.patch_tokens:
            return {BLOCK_INPUT: None}
        patches = self._codec.decode(batch.patch_tokens[-1], batch.token_scales[-1])
        cls_token = batch.cls_tokens[-1]
        assert cls_token is not None
        return {BLOCK_INPUT: torch.cat([cls_token.to(patches.dtype).unsqueeze(1), patches], dim=1)}

    def needs_taps(self, prepared: Prepared) -> bool:
        """Return whether there is something to align with."""
        return prepared[BLOCK_INPUT] is not None

    def weight(self, step: int) -> float:
        """Return `--attn-coeff`; 0 once alignment has ended."""
        return self._config.attn_coeff if self._config.is_aligned(step) else 0.0

    def loss(self, output: ModelOutput, prepared: Prepared) -> Tensor:
        """Return the attention loss; 0 without tokens."""
        tokens = prepared[BLOCK_INPUT]
        if tokens is None:
            return torch.zeros((), dtype=torch.float32, device=output.velocity.device)
        student = [output.tapped[name] for name in self.taps]
        heads = min(HEADS, self._blocks.num_heads, student[0].shape[1])
        teacher = self._blocks.to(tokens.device).logits(tokens, heads)
        return attention_loss([logits[:, :heads] for logits in student], teacher)
