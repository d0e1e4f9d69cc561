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

from ...errors import BadImageError, RepaPipeError
from ...models.vae import load_vae
from ...sources import Record, decode_crop, open_source
from ...stores import Store
from ...stores.checksum import crc32c_bytes
from ...stores.layout import features_group, latents_group
from ...stores.tokens import codec_of, read_tokens
from ..runtime.device import choose_device
from .pictures import Picture, photograph, psnr, token_picture, tokens_to_colors
from .store import complete_groups

NUM_SAMPLES = 6
SIDE = 256
MAX_BYTES = 24_000

Image8: TypeAlias = npt.NDArray[np.uint8]  # [R, R, 3]
Crops: TypeAlias = list[Image8 | None]


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


@dataclass(frozen=True, slots=True)
class _Chosen:
    """The samples that are shown."""

    store: Store
    indices: npt.NDArray[np.int64]
    records: tuple[Record, ...]

    def read(self, array: str) -> torch.Tensor:
        """One array of the store, a row a sample."""
        return torch.from_numpy(self.store.read([array], self.indices)[array])


def make_gallery(store: Store, vae: str, encoders: Sequence[str]) -> Gallery | None:
    """Pictures of samples that lie evenly over the store; None when no group is complete.

    The latents are those of `vae`; the features of `encoders` come first, those of every other complete group follow.
    What is not to be had any more (the source, the VAE's weights) is left out, and the remarks say why.
    """
    latents = [name for name in complete_groups(store, "latents") if name == latents_group(vae)]
    wanted = [features_group(encoder) for encoder in encoders]
    features = sorted(complete_groups(store, "features"), key=lambda name: name not in wanted)
    groups = [*latents, *features]
    chosen = _choose(store, groups)
    if not chosen.records:
        return None
    remarks: list[str] = []
    rows: list[GalleryRow] = []
    crops: Crops = [None] * len(chosen.records)
    with _remarking(remarks, "The photographs are not shown, as they cannot be read again"):
        crops = _read_crops(chosen, groups[0], remarks)
        rows.append(_photographs(chosen, crops))
    for name in latents:
        with _remarking(remarks, "Reconstructions are not shown, as the VAE cannot be loaded"):
            rows.append(_reconstructions(chosen, name, crops, remarks))
    for name in features:
        with _remarking(remarks, f"The tokens of {name} are not shown"):
            rows.append(_tokens(chosen, name))
    classes = store.manifest.class_names
    samples = tuple((one.key, classes[one.label] if 0 <= one.label < len(classes) else "") for one in chosen.records)
    return Gallery(samples, tuple(rows), tuple(remarks))


@contextmanager
def _remarking(remarks: list[str], what: str) -> Iterator[None]:
    """Turn an error of ours into a remark: the rest of the page is still worth having."""
    try:
        yield
    except RepaPipeError as error:
        remarks.append(f"{what}: {error}.")


def _choose(store: Store, groups: Sequence[str]) -> _Chosen:
    valid = store.valid_indices(groups) if groups else np.empty(0, np.int64)
    indices = valid[np.linspace(0, len(valid) - 1, min(NUM_SAMPLES, len(valid))).round().astype(int)]
    return _Chosen(store, indices, tuple(Record(**row) for row in store.samples.take(indices).to_pylist()))


def _read_crops(chosen: _Chosen, group: str, remarks: list[str]) -> Crops:
    """Read the photographs again; one whose bytes are not those that were encoded is left out."""
    manifest = chosen.store.manifest
    source = open_source(manifest.source["path"], manifest.source.get("kind"))
    crops: Crops = []
    for index, record in zip(chosen.indices.tolist(), chosen.records, strict=True):
        crop = None
        try:
            data = source.read(record)
            shard, row = divmod(index, manifest.shard_size)
            if crc32c_bytes(data) == chosen.store.group(group).commits[shard].source_checksums[row]:
                crop = decode_crop(data, manifest.resolution)
            else:
                remarks.append(f"{record.key} is not shown: its bytes are not those that were encoded.")
        except BadImageError as error:
            remarks.append(f"{record.key} is not shown: {error}.")
        crops.append(crop)
    return crops


def _photographs(chosen: _Chosen, crops: Crops) -> GalleryRow:
    pictures = tuple(
        None if crop is None else _picture(crop, f"Photograph {record.key}, cropped")
        for crop, record in zip(crops, chosen.records, strict=True)
    )
    return GalleryRow("Photograph", "center crop, read from the source again", pictures)


def _reconstructions(chosen: _Chosen, group: str, crops: Crops, remarks: list[str]) -> GalleryRow:
    attributes = chosen.store.group(group).attributes
    name, scale, bias = attributes["vae"], attributes["scale"], attributes["bias"]
    vae = load_vae(name, device=choose_device(None)).with_scale(scale, bias)
    if vae.fingerprint["weights_sha256"] != attributes["fingerprint"].get("weights_sha256"):
        remarks.append(f"Reconstructions are made with other weights of {name} than the latents.")
    means = chosen.read(f"{group}/moments").float().chunk(2, dim=1)[0]
    latents = means * torch.tensor(scale)[:, None, None] + torch.tensor(bias)[:, None, None]
    images = vae.decode(latents).permute(0, 2, 3, 1).cpu().numpy()
    pictures = tuple(
        _picture(image, f"Reconstruction of {record.key}", "" if crop is None else f"{psnr(crop, image):.1f} dB")
        for image, crop, record in zip(images, crops, chosen.records, strict=True)
    )
    return GalleryRow("Reconstruction", f"{name}, from the mean of the stored moments; PSNR", pictures)


def _tokens(chosen: _Chosen, group: str) -> GalleryRow:
    attributes = chosen.store.group(group).attributes
    count, encoder = attributes["num_tokens"], attributes["encoder"]
    colors, share = tokens_to_colors(read_tokens(chosen.store, group, chosen.indices))
    rows = math.isqrt(count)
    columns = count // rows
    pictures = tuple(
        token_picture(color.reshape(rows, columns, 3), f"Tokens of {record.key} by {encoder} as colors")
        for color, record in zip(colors, chosen.records, strict=True)
    )
    codec = codec_of(chosen.store, group).name
    remark = f"stored as {codec}, {rows} × {columns} tokens; the colors hold {share:.0%} of their variance"
    return GalleryRow(encoder, remark, pictures)


def _picture(image: Image8, alt: str, caption: str = "") -> Picture:
    return photograph(Image.fromarray(image), alt, SIDE, MAX_BYTES, caption)
