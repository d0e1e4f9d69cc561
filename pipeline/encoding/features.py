"""A features group: patch tokens of a frozen encoder and, if it has one, its class token."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt
import torch
from torch.nn.functional import cosine_similarity

from ...config import EncodeConfig
from ...errors import StoreError
from ...models.encoders import load_encoder
from ...stores.codecs import TOKENS, make_codec
from ...stores.layout import ArraySpec, GroupSpec, features_group
from ..runtime.device import DTYPES, package_versions
from .activity import ModelClock
from .group_encoder import EncodedBatch

PACKAGES = ("timm", "torch", "pillow")
COSINE_SAMPLES = 4  # per batch: restoring tokens costs about a hundredth of encoding them


class FeatureEncoder:
    """Encoder of a features group: `tokens`, as the codec stores them, and `cls_token` float16 `[B, D]`.

    `token_cosine` of a batch holds the cosines between the encoder's tokens and those that the codec restores, for the
    nonzero tokens of the first `COSINE_SAMPLES` samples.
    """

    def __init__(self, config: EncodeConfig, encoder: str, device: torch.device, precision: str) -> None:
        self._encoder = load_encoder(
            encoder, config.weights_of(encoder), config.resolution, device=device, dtype=DTYPES[precision]
        )
        if config.compile:
            self._encoder.compile()
        self._codec = make_codec(config.codec, self._encoder.num_tokens, self._encoder.width)
        arrays = list(self._codec.arrays)
        if self._encoder.has_cls_token:
            arrays.append(ArraySpec(name="cls_token", sample_shape=(self._encoder.width,), dtype="float16"))
        self.spec = GroupSpec(
            path=features_group(encoder),
            arrays=tuple(arrays),
            attributes={
                "encoder": encoder,
                "fingerprint": {
                    **self._encoder.fingerprint,
                    "resolution": config.resolution,
                    "codec": config.codec,
                    **package_versions(*PACKAGES),
                },
                "num_tokens": self._encoder.num_tokens,
                "width": self._encoder.width,
                "codec": self._codec.attributes,
            },
        )

    def __call__(self, crops: torch.Tensor) -> EncodedBatch:
        """Encode crops, uint8 `[B, 3, R, R]`; StoreError for tokens that overflow float16."""
        with ModelClock(crops.device) as clock:
            tokens = self._encoder(crops)
        patch_tokens = tokens.patch_tokens.float()
        arrays = self._codec.encode(patch_tokens)
        cosine = self._cosine(patch_tokens[:COSINE_SAMPLES], arrays[TOKENS][:COSINE_SAMPLES])
        if tokens.cls_token is not None:
            cls_token = tokens.cls_token.to(torch.float16)
            if not torch.isfinite(cls_token).all():
                raise StoreError(
                    f"a class token of '{self._encoder.name}' is not finite in float16: try --precision fp32"
                )
            arrays["cls_token"] = cls_token.cpu().numpy()
        return EncodedBatch(arrays, cosine, clocks=(clock,))

    def _cosine(self, exact: torch.Tensor, codes: npt.NDArray[Any]) -> npt.NDArray[Any]:
        restored = self._codec.decode(torch.from_numpy(codes).to(exact.device))
        return cosine_similarity(restored, exact, dim=-1)[exact.any(-1)].cpu().numpy()
