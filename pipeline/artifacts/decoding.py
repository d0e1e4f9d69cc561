"""Stored samples as images: latents through a VAE, tokens through a decoder of tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from ...errors import ConfigError, NonFiniteError, StoreError, WeightsError
from ...models.rae_files import load_rae_decoder
from ...models.vae_files import require_trusted
from ...stores import Store
from ...stores.layout import MOMENTS
from ...stores.tokens import read_tokens
from .images import Block

if TYPE_CHECKING:
    import torch

Decode: TypeAlias = Callable[[npt.NDArray[np.int64]], Block]  # samples [B] → images uint8 [B, R, R, 3]


def make_decoder(
    store: Store, group: str, decoder: str | None, device: torch.device | str = "cpu", same_weights: bool = False
) -> Decode:
    """Return the function that decodes samples of a group.

    Args:
        store: an open store.
        group: `latents/NAME`, decoded from the mean; or `features/NAME`, whose tokens need a decoder.
        decoder: a VAE that decodes latents, or a decoder of tokens. None: the VAE of the group.
        device: where the decoder runs.
        same_weights: refuse a VAE of the group whose weights differ from those that encoded it.

    Raises:
        StoreError: the group is missing.
        ConfigError, WeightsError: the decoder is missing, or decodes something else.
    """
    if group not in store.group_names():
        raise StoreError(
            f"{store.location} has no group {group}: expected one of {', '.join(store.group_names()) or 'none'}"
        )
    if group.startswith("latents/"):
        return _latents_decoder(store, group, decoder, device, same_weights and decoder is None)
    return _tokens_decoder(store, group, decoder, device)


def _latents_decoder(
    store: Store, group: str, vae: str | None, device: torch.device | str, same_weights: bool
) -> Decode:
    import torch

    from ...models.vae import load_vae

    found = store.group(group)
    model = load_vae(vae or require_trusted(found.attributes["vae"]), device=torch.device(device))
    channels = found.latents_channels
    if model.latent_channels != channels:
        raise WeightsError(f"{model.name} decodes {model.latent_channels} channels, {group} has {channels}")
    own, stored = (each.get("weights_sha256") for each in (model.fingerprint, found.fingerprint))
    if same_weights and stored is not None and own != stored:
        raise WeightsError(
            f"the weights of {model.name} are not those that encoded {group} (sha256 {str(own)[:12]}, expected "
            f"{str(stored)[:12]}): pass --decoder to decode with them anyway"
        )
    name = f"{group}/{found.latents_array}"
    plain = model.with_scale([1.0] * channels, [0.0] * channels)  # stored latents are not scaled

    def decode(rows: npt.NDArray[np.int64]) -> Block:
        values = torch.from_numpy(store.read([name], rows)[name]).float()
        values = values[:, :channels] if found.latents_array == MOMENTS else values
        images: Block = plain.decode(values).permute(0, 2, 3, 1).cpu().numpy()
        return images

    return decode


def _tokens_decoder(store: Store, group: str, decoder: str | None, device: torch.device | str) -> Decode:
    import torch

    if decoder is None:
        raise ConfigError(f"{group} holds tokens: pass --decoder, the AutoencoderRAE of diffusers that decodes them")
    attributes = store.group(group).attributes
    count, width = attributes["num_tokens"], attributes["width"]
    model = load_rae_decoder(decoder).to(device)
    side = round(count**0.5)
    if model.width != width or side**2 != count:
        raise WeightsError(
            f"{decoder} decodes a square grid of tokens of width {model.width}, {group} has {count} of width {width}"
        )

    def decode(rows: npt.NDArray[np.int64]) -> Block:
        tokens = read_tokens(store, group, rows).float().to(device)
        with torch.no_grad():
            images = model(tokens.transpose(1, 2).unflatten(2, (side, side)))
        if not bool(torch.isfinite(images).all()):
            raise NonFiniteError(
                f"images decoded from {group} are NaN or infinite: {decoder} is damaged, or another one's"
            )
        levels: Block = (images.clamp(0, 1) * 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()
        return levels

    return decode
