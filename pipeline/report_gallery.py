"""Samples of the store as pictures: the photograph, what the VAE kept of it, and what each encoder saw in it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from ..errors import BadImageError, RepaPipeError
from ..models.vae import load_vae
from ..sources import Record, decode_crop, open_source
from ..stores import Store
from ..stores.checksum import crc32c_bytes
from ..stores.codecs import TOKEN_SCALE, TOKENS, codec_from_attributes
from ..stores.layout import features_group, latents_group
from .device import choose_device
from .report_pictures import Picture, photograph, psnr, token_picture, tokens_to_colours
from .report_store import complete_groups

NUM_SAMPLES = 6
SIDE = 256
MAX_BYTES = 24_000

Image8: TypeAlias = npt.NDArray[np.uint8]  # [R, R, 3]
Indices: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class GalleryRow:
    """One kind of picture, of every sample; None where there is none."""

    title: str
    remark: str
    pictures: tuple[Picture | None, ...]


@dataclass(frozen=True, slots=True)
class Gallery:
    """Pictures of a few samples: a column a sample, a row a kind."""

    samples: tuple[tuple[str, str], ...]  # key, class name
    rows: tuple[GalleryRow, ...]
    remarks: tuple[str, ...]


def make_gallery(store: Store, vae: str, encoders: Sequence[str]) -> Gallery | None:
    """Pictures of samples that lie evenly over the store; None when no group is complete.

    The latents are those of `vae`; the features of `encoders` come first, those of every other complete group follow.
    What is not to be had any more (the source, the VAE's weights) is left out, and the remarks say why.
    """
    latents = [name for name in complete_groups(store, "latents") if name == latents_group(vae)]
    wanted = [features_group(encoder) for encoder in encoders]
    features = sorted(complete_groups(store, "features"), key=lambda name: name not in wanted)
    indices = _choose(store, [*latents, *features])
    if not len(indices):
        return None
    records = [Record(**row) for row in store.samples.take(indices).to_pylist()]
    remarks: list[str] = []
    rows: list[GalleryRow] = []
    crops: list[Image8 | None] = [None] * len(records)
    with _remarking(remarks, "The photographs are not shown, as they cannot be read again"):
        crops = _read_crops(store, [*latents, *features][0], indices, records, remarks)
        rows.append(_photographs(crops, records))
    for name in latents:
        with _remarking(remarks, "Reconstructions are not shown, as the VAE cannot be loaded"):
            rows.append(_reconstructions(store, name, indices, records, crops, remarks))
    for name in features:
        with _remarking(remarks, f"The tokens of {name} are not shown"):
            rows.append(_tokens(store, name, indices, records, remarks))
    classes = store.manifest.class_names
    samples = tuple((one.key, classes[one.label] if 0 <= one.label < len(classes) else "") for one in records)
    return Gallery(samples, tuple(rows), tuple(remarks))


@contextmanager
def _remarking(remarks: list[str], what: str) -> Iterator[None]:
    """Turn an error of ours into a remark: the rest of the page is still worth having."""
    try:
        yield
    except RepaPipeError as error:
        remarks.append(f"{what}: {error}.")


def _choose(store: Store, groups: Sequence[str]) -> Indices:
    valid = store.valid_indices(groups) if groups else np.empty(0, np.int64)
    positions = np.linspace(0, len(valid) - 1, min(NUM_SAMPLES, len(valid))).round().astype(int)
    chosen: Indices = valid[positions]
    return chosen


def _read_crops(
    store: Store, group: str, indices: Indices, records: Sequence[Record], remarks: list[str]
) -> list[Image8 | None]:
    """Read the photographs again and check that their bytes are those that were encoded."""
    manifest = store.manifest
    source = open_source(manifest.source["path"], manifest.source.get("kind"))
    crops: list[Image8 | None] = []
    for index, record in zip(indices.tolist(), records, strict=True):
        data = source.read(record)
        shard, row = divmod(index, manifest.shard_size)
        if crc32c_bytes(data) != store.group(group).commits[shard].source_checksums[row]:
            remarks.append(f"{record.key} is not shown: its bytes are not those that were encoded.")
            crops.append(None)
            continue
        try:
            crops.append(decode_crop(data, manifest.resolution))
        except BadImageError as error:
            remarks.append(f"{record.key} is not shown: {error}.")
            crops.append(None)
    return crops


def _photographs(crops: Sequence[Image8 | None], records: Sequence[Record]) -> GalleryRow:
    pictures = tuple(
        None if crop is None else _picture(crop, f"Photograph {record.key}, cropped")
        for crop, record in zip(crops, records, strict=True)
    )
    return GalleryRow("Photograph", "read from the source again, center crop", pictures)


def _reconstructions(
    store: Store,
    group: str,
    indices: Indices,
    records: Sequence[Record],
    crops: Sequence[Image8 | None],
    remarks: list[str],
) -> GalleryRow:
    attributes = store.group(group).attributes
    scale, bias = (torch.tensor(attributes[name])[:, None, None] for name in ("scale", "bias"))
    vae = load_vae(attributes["vae"], device=choose_device(None)).with_scale(attributes["scale"], attributes["bias"])
    digests = [found.get("weights_sha256") for found in (vae.fingerprint, attributes["fingerprint"])]
    if digests[0] != digests[1]:
        remarks.append(f"Reconstructions are made by other weights than the store's: {attributes['vae']} has changed.")
    moments = torch.from_numpy(store.read([f"{group}/moments"], indices)[f"{group}/moments"]).float()
    means = moments.chunk(2, dim=1)[0]
    images = vae.decode(means * scale + bias).permute(0, 2, 3, 1).cpu().numpy()
    pictures = tuple(
        _picture(image, f"Reconstruction of {record.key}", "" if crop is None else _decibels(crop, image))
        for image, crop, record in zip(images, crops, records, strict=True)
    )
    return GalleryRow("Reconstruction", f"{attributes['vae']}, from the mean of the stored moments", pictures)


def _tokens(store: Store, group: str, indices: Indices, records: Sequence[Record], remarks: list[str]) -> GalleryRow:
    attributes = store.group(group).attributes
    count, encoder = attributes["num_tokens"], attributes["encoder"]
    codec = codec_from_attributes(attributes["codec"], count, attributes["width"])
    arrays = store.read([f"{group}/{array.name}" for array in codec.arrays], indices)
    scales = arrays.get(f"{group}/{TOKEN_SCALE}")
    tokens = codec.decode(
        torch.from_numpy(arrays[f"{group}/{TOKENS}"]), None if scales is None else torch.from_numpy(scales)
    )
    colours, share = tokens_to_colours(tokens)
    side = math.isqrt(count)
    pictures = tuple(
        token_picture(colour.reshape(side, count // side, 3), f"Tokens of {record.key} by {encoder} as colours")
        for colour, record in zip(colours, records, strict=True)
    )
    remark = f"stored tokens, {codec.name}, {side} × {count // side}; their three principal components hold {share:.0%}"
    return GalleryRow(encoder, remark, pictures)


def _picture(image: Image8, alt: str, caption: str = "") -> Picture:
    return photograph(Image.fromarray(image), alt, SIDE, MAX_BYTES, caption)


def _decibels(crop: Image8, image: Image8) -> str:
    return f"{psnr(crop, image):.1f} dB"
