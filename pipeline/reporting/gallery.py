"""Stored samples as images: the source image, its reconstruction by the VAE, and the tokens of every encoder.

Only images that are not cached yet require torch, whose import takes longer than the rest of a report.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from ...errors import BadImageError, RepaPipeError, WeightsError
from ...models.vae_files import is_downloaded
from ...sources import Record, decode_crop, open_recorded, records_of
from ...stores import Store
from ...stores.checksum import crc32c_bytes
from ...stores.layout import MOMENTS, features_group, latents_group
from .image_cache import content_digest, read_cached, write_cached
from .images import EncodedImage, encode_image, encode_token_colors, psnr, tokens_to_colors

logger = logging.getLogger(__name__)

NUM_SAMPLES = 6
SIDE = 256
MAX_BYTES = 24_000

Image8: TypeAlias = npt.NDArray[np.uint8]  # [R, R, 3]
Crops: TypeAlias = list[Image8 | None]


@dataclass(frozen=True, slots=True)
class GalleryRow:
    """Images of one kind, one per sample; None where one is not available."""

    title: str
    note: str
    images: tuple[EncodedImage | None, ...]


@dataclass(frozen=True, slots=True)
class Gallery:
    """Images of a few samples: one column per sample, one row per kind."""

    samples: tuple[tuple[str, str], ...]  # key, class name
    rows: tuple[GalleryRow, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Selection:
    """The samples that are shown."""

    store: Store
    indices: npt.NDArray[np.int64]
    records: tuple[Record, ...]

    def read(self, name: str) -> dict[str, npt.NDArray[Any]]:
        """Return an array or the arrays of a group, one row per sample."""
        return self.store.read([name], self.indices)


def make_gallery(
    store: Store, vae: str, encoders: Sequence[str], source_kind: str | None = None, download: bool = False
) -> Gallery | None:
    """Return images of samples spaced evenly over the store, or None when no group is complete.

    Reconstructions are made from the latents of `vae`. Tokens of `encoders` come first, then those of every other
    complete group. Whatever is no longer available (the source, the VAE's weights) is omitted, with a note that gives
    the reason. Weights that the store names are downloaded only with `download`.
    """
    latents = [name for name in store.complete_groups("latents") if name == latents_group(store.vae_name(vae))]
    first = [features_group(encoder) for encoder in encoders]
    features = sorted(store.complete_groups("features"), key=lambda name: name not in first)
    groups = [*latents, *features]
    selection = _select(store, groups)
    if not selection.records:
        return None
    notes: list[str] = []
    rows: list[GalleryRow] = []
    crops: Crops = [None] * len(selection.records)
    with _error_as_note(notes, "Source images are not shown because they cannot be read"):
        crops = _read_crops(selection, groups[0], source_kind, notes)
        rows.append(_image_row(selection, crops))
    for name in latents:
        with _error_as_note(notes, "Reconstructions are not shown because the VAE cannot be loaded"):
            rows.append(_reconstruction_row(selection, name, crops, notes, download))
    for name in features:
        with _error_as_note(notes, f"Tokens of {name} are not shown"):
            rows.append(_token_row(selection, name))
    classes = store.manifest.class_names
    samples = tuple((one.key, classes[one.label] if 0 <= one.label < len(classes) else "") for one in selection.records)
    return Gallery(samples, tuple(rows), tuple(notes))


@contextmanager
def _error_as_note(notes: list[str], what: str) -> Iterator[None]:
    """Turn an error of ours into a note, so that it does not prevent the rest of the report."""
    try:
        yield
    except RepaPipeError as error:
        notes.append(f"{what}: {error}.")


def _select(store: Store, groups: Sequence[str]) -> _Selection:
    has_images = bool(groups) and len(store.quarantined(groups)) < len(store)
    valid = store.valid_indices(groups) if has_images else np.empty(0, np.int64)
    indices = valid[np.linspace(0, len(valid) - 1, min(NUM_SAMPLES, len(valid))).round().astype(int)]
    return _Selection(store, indices, tuple(records_of(store.samples.take(indices))))


def _read_crops(selection: _Selection, group: str, source_kind: str | None, notes: list[str]) -> Crops:
    """Read the source images; None for an image whose bytes differ from those that were encoded."""
    manifest = selection.store.manifest
    source = open_recorded(manifest.source, kind=source_kind)
    crops: Crops = []
    for index, record in zip(selection.indices.tolist(), selection.records, strict=True):
        crop = None
        try:
            data = source.read(record)
            shard, row = divmod(index, manifest.shard_size)
            if crc32c_bytes(data) == selection.store.group(group).commits[shard].source_checksums[row]:
                crop = decode_crop(data, manifest.resolution)
            else:
                notes.append(f"{record.key} is not shown because the file was changed after it was encoded.")
        except BadImageError as error:
            notes.append(f"{record.key} is not shown: {error}.")
        crops.append(crop)
    return crops


def _image_row(selection: _Selection, crops: Crops) -> GalleryRow:
    images = tuple(
        None if crop is None else _encode(crop, f"Center crop of {record.key}")
        for crop, record in zip(crops, selection.records, strict=True)
    )
    return GalleryRow("Image", "center crop, read from the source", images)


def _reconstruction_row(
    selection: _Selection, group: str, crops: Crops, notes: list[str], download: bool
) -> GalleryRow:
    decoded = _reconstructions(selection, group, notes, download)
    images = tuple(
        _encode(image, f"Reconstruction of {record.key}", "" if crop is None else f"{psnr(crop, image):.1f} dB")
        for image, crop, record in zip(decoded, crops, selection.records, strict=True)
    )
    name = selection.store.group(group).attributes["vae"]
    of = "the mean of the stored moments" if _array(selection, group) == MOMENTS else "the stored latents"
    return GalleryRow("Reconstruction", f"{name}, decoded from {of}; PSNR", images)


def _array(selection: _Selection, group: str) -> str:
    return selection.store.group(group).latents_array


def _reconstructions(selection: _Selection, group: str, notes: list[str], download: bool) -> npt.NDArray[np.uint8]:
    """Return the decoded means, `[S, R, R, 3]`, from the cache or else from the VAE; WeightsError if it is missing."""
    attributes = selection.store.group(group).attributes
    name, fingerprint = attributes["vae"], attributes["fingerprint"]
    array = f"{group}/{_array(selection, group)}"
    latents = selection.read(array)
    key = {"kind": "reconstructions", "moments": content_digest(latents), "vae": fingerprint}
    if cached := read_cached(key):
        return cached["images"]
    if not download and not is_downloaded(name):
        logger.warning("no reconstructions: the VAE %s is not on this machine (--download loads it)", name)
        raise WeightsError(f"{name} is not on this machine. Pass --download to download it")
    logger.info(
        "decoding %d stored samples with %s (once: later reports use cached images)", len(selection.indices), name
    )
    import torch

    from ...models.vae import load_vae
    from ..runtime.device import choose_device

    vae = load_vae(name, device=choose_device(None))
    means = torch.from_numpy(latents[array]).float()[:, : len(attributes["scale"])]  # moments begin with the mean
    vae = vae.with_scale([1.0] * means.shape[1], [0.0] * means.shape[1])  # stored latents are not scaled
    images: npt.NDArray[np.uint8] = vae.decode(means).permute(0, 2, 3, 1).cpu().numpy()
    if vae.fingerprint.get("weights_sha256") == fingerprint.get("weights_sha256"):
        write_cached(key, {"images": images})
    else:
        notes.append(f"Reconstructions use other weights of {name} than the stored latents.")
    return images


def _token_row(selection: _Selection, group: str) -> GalleryRow:
    attributes = selection.store.group(group).attributes
    count, encoder = attributes["num_tokens"], attributes["encoder"]
    colors, explained = _token_colors(selection, group)
    rows = math.isqrt(count)
    columns = count // rows
    images = tuple(
        encode_token_colors(color.reshape(rows, columns, 3), f"Tokens of {record.key} by {encoder} as colors")
        for color, record in zip(colors, selection.records, strict=True)
    )
    codec = attributes["codec"]["name"]
    note = f"{rows} × {columns} tokens, stored as {codec}; the colors show {explained:.0%} of their variance"
    return GalleryRow(encoder, note, images)


def _token_colors(selection: _Selection, group: str) -> tuple[npt.NDArray[np.uint8], float]:
    """Return colors `[S, N, 3]` and the variance that they explain, from the cache or else from the tokens."""
    attributes = selection.store.group(group).attributes
    recipe = {name: attributes[name] for name in ("codec", "num_tokens", "width")}
    key = {"kind": "token colors", "stored": content_digest(selection.read(group))} | recipe
    if cached := read_cached(key):
        return cached["colors"], float(cached["explained"])
    from ...stores.tokens import read_tokens

    colors, explained = tokens_to_colors(read_tokens(selection.store, group, selection.indices).numpy())
    write_cached(key, {"colors": colors, "explained": np.array(explained)})
    return colors, explained


def _encode(image: Image8, alt: str, caption: str = "") -> EncodedImage:
    return encode_image(Image.fromarray(image), alt, SIDE, MAX_BYTES, caption)
