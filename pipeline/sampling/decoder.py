"""From latents to images: the VAE of a run, or the decoder of encoder tokens."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...config import SampleConfig
from ...diffusion.normalization import Normalization
from ...errors import ConfigError, NonFiniteError, WeightsError
from ...models.precision import rows_not_finite
from ...models.rae_decoder import RaeDecoder
from ...models.rae_files import load_rae_decoder
from ...models.vae import load_vae
from ...models.vae_files import require_trusted
from ..artifacts.checkpoints import TrainedModel

Decode = Callable[[Tensor], Tensor]  # latents [B, C, h, w] → uint8 [B, 3, H, W]


def make_decoder(config: SampleConfig, trained: TrainedModel, device: torch.device) -> Decode:
    """Return the function that turns latents of a model into images.

    Raises:
        ConfigError: the decoder belongs to other latents, or none was given for tokens.
        WeightsError: the VAE or decoder is unavailable.
    """
    if trained.normalization is None:
        if config.decoder is not None:
            raise ConfigError("--decoder is given, but the model generates the latents of a VAE: remove it")
        vae = load_vae(vae_name(config, trained), device=device)
        return vae.with_scale(list(trained.store.latents_scale), list(trained.store.latents_bias)).decode
    encoder, sit = trained.store.token_latents, trained.model.config
    if config.vae is not None:
        raise ConfigError(f"--vae is given, but the latents are tokens of {encoder}: use --decoder")
    if config.decoder is None:
        raise ConfigError(
            f"the latents are tokens of {encoder}: pass --decoder, the AutoencoderRAE of diffusers that was trained to "
            "decode them"
        )
    decoder = load_rae_decoder(config.decoder)
    if decoder.width != sit.in_channels:
        raise WeightsError(
            f"{config.decoder} decodes tokens of width {decoder.width}, the latents are tokens of {encoder} of width "
            f"{sit.in_channels}: pass the decoder of that encoder"
        )
    return TokenDecoder(decoder.to(device), _on(device, trained.normalization))


def vae_name(config: SampleConfig, trained: TrainedModel) -> str:
    """Return the VAE that decodes: the given one, or that of the store.

    Raises:
        ConfigError: neither is known.
        WeightsError: the store's is not one that may be downloaded.
    """
    if config.vae or trained.store.vae:
        return config.vae or require_trusted(trained.store.vae)
    raise ConfigError("the checkpoint does not record the VAE of its latents: pass --vae")


class TokenDecoder:
    """Decodes normalized tokens; called with latents [B, C, h, w]."""

    def __init__(self, decoder: RaeDecoder, normalization: Normalization) -> None:
        self._decoder, self._normalization = decoder, normalization

    @torch.no_grad()
    def __call__(self, latents: Tensor) -> Tensor:
        """Return images, uint8 [B, 3, H, W]. Levels are truncated, not rounded, as published.

        Raises:
            NonFiniteError: latents, or decoded images, are NaN or infinite.
        """
        images: Tensor = self._decoder(self._normalization.restore(latents.float()))
        if broken := rows_not_finite(images):
            cause = "latents" if rows_not_finite(latents) else "decoded images"
            raise NonFiniteError(
                f"{len(broken)} of {len(images)} {cause} are NaN or infinite, first number {broken[0]}"
            )
        return (images.clamp(0, 1) * 255).to(torch.uint8)


def _on(device: torch.device, normalization: Normalization) -> Normalization:
    return Normalization(mean=normalization.mean.to(device), var=normalization.var.to(device), eps=normalization.eps)
