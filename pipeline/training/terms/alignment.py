"""What the model is aligned with: the targets made of stored tokens, the loss, and its weight at every step."""

from __future__ import annotations

from torch import Tensor

from ....config import TrainConfig
from ....diffusion.loss import alignment_loss, nt_xent_loss, spatial_zscore
from ....stores import Batch, Store
from ....stores.layout import features_group
from ....stores.tokens import codec_of

LOSSES = {"cosine": alignment_loss, "nt_xent": nt_xent_loss}


class Alignment:
    """The alignment that a config asks for, with the encoders of a store."""

    def __init__(self, config: TrainConfig, store: Store) -> None:
        self._config = config
        self._codecs = [codec_of(store, features_group(encoder)) for encoder in config.enc_type]
        self.loss = LOSSES[config.alignment_loss]

    def coefficient(self, step: int) -> float:
        """The loss's weight in step `step`, counted from 0: constant, falling in a straight line, or 0 at last."""
        config = self._config
        if config.aligned_steps is not None and step >= config.aligned_steps:
            return 0.0
        left = 1 - step / config.proj_coeff_decay_steps if config.proj_coeff_decay_steps else 1.0
        return config.proj_coeff * left

    def targets(self, batch: Batch) -> list[Tensor]:
        """Tokens [B, N, D] to align with, one tensor an encoder, on the batch's device; none when none were read."""
        if not batch.patch_tokens:
            return []
        tokens = [
            codec.decode(codes, scale) if codec.name != "float16" else codes
            for codec, codes, scale in zip(self._codecs, batch.patch_tokens, batch.token_scales, strict=True)
        ]
        gamma = self._config.spatial_norm
        return tokens if gamma is None else [spatial_zscore(each, gamma) for each in tokens]
