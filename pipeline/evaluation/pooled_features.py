"""One vector per image of a stored encoder: of training images from the store, of other images by the encoder."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...errors import WeightsError
from ...models.encoders import load_encoder
from ...stores import Store
from ...stores.layout import features_group
from ...stores.tokens import read_tokens
from ..artifacts.images import Block

CLS_TOKEN = "cls_token"


class PooledFeatures:
    """The class token if the store has it, else the mean of the patch tokens.

    Args:
        store: an open store.
        encoder: name of an encoder whose group is complete.
        weights: its local weights file. None: download.
        device: where the encoder runs.

    Raises:
        ConfigError, WeightsError: the encoder is unavailable, or its weights are not those that encoded the group.
    """

    def __init__(self, store: Store, encoder: str, weights: str | None, device: torch.device) -> None:
        self._store, self._group, self._device = store, features_group(encoder), device
        group = store.group(self._group)
        self._encoder = load_encoder(encoder, weights, store.manifest.resolution, device=device)
        own, stored = (each.get("weights_sha256") for each in (self._encoder.fingerprint, group.fingerprint))
        if own != stored:
            raise WeightsError(
                f"the weights of {encoder} are not those that encoded {self._group} (sha256 {str(own)[:12]}, expected "
                f"{str(stored)[:12]}): pass the same file as --encoder-weights {encoder}=PATH"
            )
        self.has_cls_token = CLS_TOKEN in group.shard_indexes
        self.width = self._encoder.width

    def of_samples(self, rows: npt.NDArray[np.int64]) -> Tensor:
        """Return the features of samples of the store, float32 `[B, D]` on the device."""
        if self.has_cls_token:
            name = f"{self._group}/{CLS_TOKEN}"
            return torch.from_numpy(self._store.read([name], rows)[name]).float().to(self._device)
        return read_tokens(self._store, self._group, rows).to(self._device).mean(1)

    def of_images(self, images: Block) -> Tensor:
        """Return the features of images uint8 `[B, R, R, 3]`, float32 `[B, D]` on the device."""
        tokens = self._encoder(torch.from_numpy(images.copy()).permute(0, 3, 1, 2).to(self._device))
        if self.has_cls_token:
            assert tokens.cls_token is not None
            return tokens.cls_token.float()
        return tokens.patch_tokens.float().mean(1)
