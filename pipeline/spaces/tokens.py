"""The patch tokens of an encoder as latents, on their grid (RAE, arXiv 2510.11690)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from ...diffusion.normalization import Normalization
from ...errors import ConfigError
from ...stores import Batch, Store
from ...stores.checksum import crc32c_bytes
from ...stores.codecs import Codec
from ...stores.layout import features_group
from ...stores.statistics import GroupStatistics, Per, read_statistics
from ...stores.tokens import codec_of
from .space import Space

EPS = 1e-5  # added to the variance, in RAE and RAEv2
_PREFERRED: tuple[Per, ...] = ("position", "channel", "all")


class TokenSpace(Space):
    """Tokens `[B, N, D]` as latents `[B, D, h, w]`, normalized by their mean and variance.

    Args:
        codec: restores the stored tokens.
        mean: `[D, h, w]`, or a shape that broadcasts against it.
        var: like `mean`.
    """

    draws_posterior: ClassVar[bool] = False
    mean: Tensor
    var: Tensor

    def __init__(self, codec: Codec, mean: Tensor, var: Tensor) -> None:
        super().__init__()
        self._codec, self._side = codec, round(codec.num_tokens**0.5)
        self.register_buffer("mean", mean.float(), persistent=False)
        self.register_buffer("var", var.float(), persistent=False)

    def stored(self, batch: Batch) -> Tensor:
        """Restore the tokens, and arrange them on their grid: float32 `[B, D, h, w]`."""
        assert batch.latent_tokens is not None
        codes = batch.latent_tokens
        is_plain = self._codec.name == "float16"  # then also float32, from an encoder online
        tokens = (codes.float() if is_plain else self._codec.decode(codes, batch.latent_scales)).transpose(1, 2)
        return tokens.reshape(*tokens.shape[:2], self._side, self._side)

    def shape(self, stored: Tensor) -> tuple[int, ...]:
        """Return width and sides."""
        return tuple(stored.shape[1:])

    def data(self, stored: Tensor, posterior: Tensor | None) -> Tensor:
        """Normalize."""
        return self.normalization.normalize(stored)

    @property
    def normalization(self) -> Normalization:
        """Return mean and variance."""
        return Normalization(mean=self.mean, var=self.var, eps=EPS)

    def checkpoint(self) -> dict[str, Any]:
        """Return the statistics, which decoding undoes."""
        return {"latents": {"mean": self.mean.cpu(), "var": self.var.cpu(), "eps": EPS}}


def statistics_of(store: Store, encoder: str) -> tuple[Per, GroupStatistics]:
    """Return the statistics with which an encoder's tokens are normalized: per position if there are such.

    Raises:
        ConfigError: the store has none.
        StoreError: they are damaged.
    """
    for per in _PREFERRED:
        found = read_statistics(store, features_group(encoder), per)
        if found is not None:
            return per, found
    raise ConfigError(
        f"--token-latents {encoder}: {store.location} has no statistics of these tokens, with which they are "
        f"normalized: run 'repa-pipe store stats STORE --encoder {encoder} --write' first"
    )


def statistics_digest(store: Store, encoder: str) -> str:
    """Return what identifies the statistics: what they were averaged over, and a checksum of their numbers."""
    per, found = statistics_of(store, encoder)
    return f"{per} {crc32c_bytes(found.mean.tobytes() + found.var.tobytes()):08x}"


def token_space(store: Store, encoder: str) -> TokenSpace:
    """Build the space of an encoder's tokens in a store."""
    _, found = statistics_of(store, encoder)
    codec = codec_of(store, features_group(encoder))
    return TokenSpace(codec, torch.from_numpy(found.mean), torch.from_numpy(found.var))
