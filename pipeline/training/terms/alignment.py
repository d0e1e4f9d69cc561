"""The alignment loss between projected hidden tokens and stored tokens (REPA, equation 7; iREPA's spatial norm)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from ....config import TrainConfig
from ....diffusion.loss import alignment_loss, mse_alignment_loss, nt_xent_loss, spatial_zscore
from ....stores import Batch, Store
from ....stores.layout import features_group
from ....stores.tokens import codec_of
from ...runtime.distributed import DistributedContext
from .term import ModelOutput, Prepared, Term

LOSSES = {"cosine": alignment_loss, "nt_xent": nt_xent_loss, "mse": mse_alignment_loss}
TARGETS = "targets"


class AlignmentTerm(Term):
    """Mean over encoders, samples and tokens of the loss between projected and stored tokens.

    With class tokens (REG) the first target of each encoder is its class token, `[B, 1 + N, D]` in all.
    """

    metric: ClassVar[str] = "alignment_loss"

    def __init__(self, config: TrainConfig, store: Store) -> None:
        self._config = config
        self._codecs = [codec_of(store, features_group(encoder)) for encoder in config.enc_type]
        self._loss = LOSSES[config.alignment_loss]

    def prepare(self, batch: Batch, step: int, ranks: DistributedContext) -> Prepared:
        """Return the `targets`: one tensor [B, N, D] per encoder, or none if the batch holds no tokens."""
        tokens = self._tokens(batch)
        if self._config.cls_coeff:
            tokens = [
                torch.cat([cls_token.float().unsqueeze(1), each.float()], dim=1)
                for cls_token, each in zip(batch.cls_tokens, tokens, strict=False)  # no tokens once alignment has ended
                if cls_token is not None
            ]
        return {TARGETS: tokens}

    def _tokens(self, batch: Batch) -> list[Tensor]:
        if not batch.patch_tokens:
            return []
        count = len(self._codecs)  # tokens of one more encoder may follow, for the alignment of attention
        own = zip(self._codecs, batch.patch_tokens[:count], batch.token_scales[:count], strict=True)
        tokens = [codec.decode(codes, scale) if codec.name != "float16" else codes for codec, codes, scale in own]
        gamma = self._config.spatial_norm
        return tokens if gamma is None else [spatial_zscore(each, gamma) for each in tokens]

    def needs_projection(self, prepared: Prepared) -> bool:
        """Return whether there are targets."""
        return bool(prepared[TARGETS])

    def weight(self, step: int) -> float:
        """Return `--proj-coeff`, with its linear decay if any; 0 once alignment has ended."""
        config = self._config
        if not config.is_aligned(step):
            return 0.0
        left = 1 - step / config.proj_coeff_decay_steps if config.proj_coeff_decay_steps else 1.0
        return config.proj_coeff * left

    def loss(self, output: ModelOutput, prepared: Prepared) -> Tensor:
        """Return the alignment loss; 0 without targets."""
        if not prepared[TARGETS]:
            return torch.zeros((), dtype=torch.float32, device=output.velocity.device)
        return self._loss(output.projected, prepared[TARGETS])
