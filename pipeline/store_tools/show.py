"""`repa-pipe store show`: decode what a store holds of some images, as one picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...errors import ConfigError, NonFiniteError, StoreError, WeightsError
from ...models.rae_files import load_rae_decoder
from ...models.vae_files import require_trusted
from ...stores import Store, open_store
from ...stores.layout import MOMENTS
from ...stores.tokens import read_tokens
from ..artifacts.images import Block, save_grid

if TYPE_CHECKING:
    from torch import Tensor

COLUMNS = 8


def show(path: str, out: str, group: str, decoder: str | None, count: int) -> str:
    """Decode samples spread over a store into a grid of images.

    Args:
        path: the store.
        out: the PNG file to write.
        group: `latents/NAME`, decoded from the mean; or `features/NAME`, whose tokens need a decoder.
        decoder: a VAE that decodes latents, or a decoder of tokens. None: the VAE of the group.
        count: number of images.

    Returns:
        A line for each row of images with the numbers of the samples and their classes.

    Raises:
        StoreError: the group is missing or incomplete.
        ConfigError, WeightsError: the decoder is missing, or decodes something else.
    """
    if Path(out).suffix != ".png":
        raise ConfigError(f"--out is {out!r}: expected a name that ends in .png")
    if count < 1:
        raise ConfigError(f"--images is {count}: expected at least 1")
    with open_store(path) as store:
        if group not in store.group_names():
            raise StoreError(f"{path} has no group {group}: expected one of {', '.join(store.group_names())}")
        valid = store.valid_indices([group])
        rows = valid[np.linspace(0, len(valid) - 1, min(count, len(valid))).astype(np.int64)]
        is_latents = group.startswith("latents/")
        images = _decoded_latents(store, group, decoder, rows) if is_latents else _tokens(store, group, decoder, rows)
        save_grid(Path(out), images, COLUMNS)
        names, labels = store.manifest.class_names, store.labels_at(rows)
    lines = [f"{out}: {len(rows)} images of {group}"]
    for start in range(0, len(rows), COLUMNS):
        part = range(start, min(start + COLUMNS, len(rows)))
        lines.append("  " + ", ".join(f"{rows[i]} {names[labels[i]]}" for i in part))
    return "\n".join(lines)


def _decoded_latents(store: Store, group: str, vae: str | None, rows: np.ndarray) -> Block:
    import torch

    from ...models.vae import load_vae

    found = store.group(group)
    model = load_vae(vae or require_trusted(found.attributes["vae"]))
    channels = found.latents_channels
    if model.latent_channels != channels:
        raise WeightsError(f"{model.name} decodes {model.latent_channels} channels, {group} has {channels}")
    name = f"{group}/{found.latents_array}"
    values = torch.from_numpy(store.read([name], rows)[name]).float()
    values = values[:, :channels] if found.latents_array == MOMENTS else values
    plain = model.with_scale([1.0] * channels, [0.0] * channels)
    images: Block = plain.decode(values).permute(0, 2, 3, 1).cpu().numpy()
    return images


def _tokens(store: Store, group: str, decoder: str | None, rows: np.ndarray) -> Block:
    if decoder is None:
        raise ConfigError(f"{group} holds tokens: pass --decoder, the AutoencoderRAE of diffusers that decodes them")
    model = load_rae_decoder(decoder)
    tokens: Tensor = read_tokens(store, group, rows).float()
    side = round(tokens.shape[1] ** 0.5)
    if model.width != tokens.shape[2] or side**2 != tokens.shape[1]:
        raise WeightsError(
            f"{decoder} decodes a square grid of tokens of width {model.width}, {group} has {tokens.shape[1]} of width "
            f"{tokens.shape[2]}"
        )
    import torch

    with torch.no_grad():
        images = model(tokens.transpose(1, 2).unflatten(2, (side, side)))
    if not bool(torch.isfinite(images).all()):
        raise NonFiniteError(f"images decoded from {group} are NaN or infinite: {decoder} is damaged, or another one's")
    levels: Block = (images.clamp(0, 1) * 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    return levels
