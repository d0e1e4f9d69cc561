"""`repa-pipe store import`: import latents that other programs have computed.

The arrays are stored as they are, byte for byte; scale and bias become attributes. With `--data-dir`, the images that
they were computed from give the keys and the names of the classes, and `encode` adds encoders afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import ConfigError, SourceError, StoreError, WeightsError
from ...models.vae_files import describe_vae, is_known_vae, latents_scale_and_bias
from ...sources import DEFAULTS, Index, Record, index_digest, open_source, records_of
from ...sources.index import build_index
from ...sources.skipped import RECORDED
from ...stores import Store, open_store
from ...stores.checksum import crc32c_bytes, crc32c_rows
from ...stores.creation import open_or_create_store, prepare_groups
from ...stores.layout import MOMENTS, ArraySpec, GroupSpec, latents_group, shard_range
from ...stores.writer import ShardWriter
from ..artifacts.image_counts import listed_as_store
from ..artifacts.latents_stats import Latents, read_latents
from ..encoding.latents_scale import warn_of_unusual_scale
from ..runtime.progress import progress
from .latent_folders.folder import FolderOptions, LatentFolder
from .latent_folders.opening import open_folder

BATCH = 256  # images per read

Scale = tuple[Sequence[float], Sequence[float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportOptions:
    """Settings of an import.

    Attributes:
        vae: name of the VAE that computed the latents; the name of the group.
        data_dir: the images that it computed them from, as for `encode --source`; None if they are not at hand.
        resolution: side of the images in pixels; None to compute it from the VAE's config.
        latents_stats: a file of statistics; None for the one in the folder, if any.
        latents_scale: factor of the latents, after the normalization with statistics if there are such.
        folder: what the folder does not say itself.
    """

    vae: str
    data_dir: str | None = None
    resolution: int | None = None
    latents_stats: str | None = None
    latents_scale: float | None = None
    folder: FolderOptions = field(default_factory=FolderOptions)


def options_of(  # noqa: PLR0917 - the options of the command line
    vae: str,
    data_dir: str | None,
    images: int | None,
    resolution: int | None,
    latents_stats: str | None,
    latents_scale: float | None,
    latents_key: str | None,
    flipped_key: str | None,
    label_key: str | None,
    moments: bool,
    latents_shape: str | None,
    latents_dtype: str | None,
) -> ImportOptions:
    """Return the settings of the command line; raise ConfigError for values that cannot work."""
    for name, value in (("--images", images), ("--resolution", resolution)):
        if value is not None and value < 1:
            raise ConfigError(f"{name} is {value}: expected at least 1")
    if latents_scale is not None and not (np.isfinite(latents_scale) and latents_scale):
        raise ConfigError(f"--latents-scale is {latents_scale}: expected a number other than 0")
    if latents_dtype not in {None, "float32", "float16"}:
        raise ConfigError(f"--latents-dtype is {latents_dtype}: expected float32 or float16")
    sizes = (latents_shape or "").split(",")
    if latents_shape is not None and (len(sizes) != 3 or not all(size.isdecimal() and int(size) for size in sizes)):
        raise ConfigError(f"--latents-shape is {latents_shape}: expected three sizes, such as 32,16,16")
    folder = FolderOptions(
        images=images,
        latents_key=latents_key,
        flipped_key=flipped_key,
        label_key=label_key,
        moments=moments,
        shape=None if latents_shape is None else (int(sizes[0]), int(sizes[1]), int(sizes[2])),
        dtype=latents_dtype,
    )
    return ImportOptions(
        vae=vae,
        data_dir=data_dir,
        resolution=resolution,
        latents_stats=latents_stats,
        latents_scale=latents_scale,
        folder=folder,
    )


def import_latents(path: str, store_path: str, options: ImportOptions) -> str:
    """Import a folder of latents; re-running with the same arguments resumes.

    Returns:
        A summary in one line.

    Raises:
        SourceError: the folder is damaged, of no known layout, or does not match the images.
        ConfigError: the scale of the latents, or the resolution, is unknown.
        StoreError: the store holds other images, or these latents with another scale.
    """
    folder = open_folder(path, options.folder)
    scale, bias = _scale_and_bias(folder, options)
    resolution = _resolution(folder, options)
    source = open_source(options.data_dir, None, listed_as_store(store_path, DEFAULTS)) if options.data_dir else None
    index = source.index() if source else _index_of(folder)
    _require_same_images(index, folder, options.data_dir)
    with open_or_create_store(
        store_path,
        index,
        index_digest=index_digest(index),
        resolution=resolution,
        class_names=source.class_names if source else folder.class_names(),
        source=source.provenance() if source else {"kind": "latents", "path": str(Path(path).resolve()), RECORDED: []},
    ) as store:
        name = options.vae if is_known_vae(options.vae) else store.vae_name(options.vae)
        spec = _spec(name, folder, scale, bias, resolution)
        prepare_groups(store, [spec])
        _require_same_scale(store, spec)
        _import_shards(store, spec, folder, _Checksums(index, source))
    with open_store(store_path) as store:  # reopened, since the commits have changed
        warn_of_unusual_scale(store.group(spec.path))
        return (
            f"{store_path}: {len(store):,} images, {spec.path} {list(folder.shape)} from {folder.layout}'s layout"
            f"{', with flips' if folder.has_flips else ''}"
        )


def _spec(name: str, folder: LatentFolder, scale: Sequence[float], bias: Sequence[float], resolution: int) -> GroupSpec:
    return GroupSpec(
        path=latents_group(name),
        arrays=tuple(ArraySpec(name=each, sample_shape=folder.shape, dtype=folder.dtype) for each in folder.arrays),
        attributes={
            "vae": name,
            "fingerprint": {"imported_from": f"{folder.layout}'s layout", "resolution": resolution},
            "scale": list(scale),
            "bias": list(bias),
            **({} if folder.array == MOMENTS else {"array": folder.array}),
        },
    )


def _channels(folder: LatentFolder) -> int:
    parts = 2 if folder.array == MOMENTS else 1
    if folder.shape[0] % parts:
        raise SourceError(f"moments {list(folder.shape)}: expected means, then as many standard deviations")
    return folder.shape[0] // parts


def _scale_and_bias(folder: LatentFolder, options: ImportOptions) -> Scale:
    """Return scale and bias: from statistics times the given scale, else the given scale, else the VAE's config.

    Raises:
        ConfigError: nothing is known.
        WeightsError: the file of statistics is damaged, or that of other latents.
    """
    channels, factor = _channels(folder), options.latents_scale
    path = options.latents_stats or (str(folder.statistics) if folder.statistics else None)
    if path is not None:
        found = read_latents(path, (channels, *folder.shape[1:]), None)  # type: ignore[arg-type]
        if not isinstance(found, Latents):
            raise WeightsError(f"{path} holds statistics of an encoder's tokens: expected those of a VAE's latents")
        times = 1.0 if factor is None else factor
        return [each * times for each in found.scale], [each * times for each in found.bias]
    if factor is not None:
        return [factor] * channels, [0.0] * channels
    try:
        scale, bias = latents_scale_and_bias(options.vae)
    except (ConfigError, WeightsError) as error:
        raise ConfigError(
            f"{error}. If its config is not available, pass --latents-scale, or --latents-stats with a file"
        ) from error
    if len(scale) != channels:
        raise ConfigError(f"--vae {options.vae} has latents of {len(scale)} channels, the folder {channels}")
    return scale, bias


def _resolution(folder: LatentFolder, options: ImportOptions) -> int:
    """Return the side of the images in pixels."""
    if options.resolution is not None:
        return options.resolution
    try:
        return int(folder.shape[1]) * describe_vae(options.vae)[1]
    except (ConfigError, WeightsError) as error:
        raise ConfigError(
            f"{error}. If its config is not available, pass --resolution, the side of the images"
        ) from error


def _index_of(folder: LatentFolder) -> Index:
    """Return an index of images that are not at hand."""
    pairs = zip(folder.keys, folder.labels.tolist(), strict=True)
    return build_index(Record(key, label, 0, key) for key, label in pairs)


def _require_same_images(index: Index, folder: LatentFolder, data_dir: str | None) -> None:
    """Raise SourceError unless there are as many images as latents, with the same labels in the same order."""
    labels = np.asarray(index["label"].to_numpy(), np.int64)
    if len(labels) != len(folder.labels):
        raise SourceError(f"{data_dir} has {len(labels):,} images, the folder latents of {len(folder.labels):,}")
    different = np.flatnonzero(labels != folder.labels)
    if len(different):
        first = int(different[0])
        raise SourceError(
            f"labels of {data_dir} and of the latents differ for {len(different):,} of {len(labels):,} images, first "
            f"for {index['key'][first].as_py()}: {labels[first]} and {folder.labels[first]}"
        )


def _require_same_scale(store: Store, spec: GroupSpec) -> None:
    recorded = store.group(spec.path).attributes
    for name in ("scale", "bias"):
        if list(recorded[name]) != spec.attributes[name]:
            raise StoreError(
                f"{store.location}: {spec.path} was imported with {name} {list(recorded[name])[:4]}, now it would be "
                f"{spec.attributes[name][:4]}: delete {store.location}/{spec.path} and "
                f"{store.location}/commits/{spec.path}"
            )


@dataclass(frozen=True, slots=True)
class _Checksums:
    """What commit records hold of the source: checksums of the images, or of the latents if there are no images."""

    index: Index
    source: Any

    def of(self, rows: range, arrays: dict[str, npt.NDArray[Any]], array: str) -> npt.NDArray[np.uint32]:
        if self.source is None:
            return crc32c_rows(np.ascontiguousarray(arrays[array]))
        records = records_of(self.index.slice(rows.start, len(rows)))
        return np.array([crc32c_bytes(self.source.read(record)) for record in records], np.uint32)


def _import_shards(store: Store, spec: GroupSpec, folder: LatentFolder, checksums: _Checksums) -> None:
    """Write and commit the shards of the group that are missing."""
    missing = store.group(spec.path).missing_shards()
    todo = sum(len(shard_range(shard, len(store), store.manifest.shard_size)) for shard in missing)
    with progress("import", len(store), "images", initial=len(store) - todo) as bar:
        for shard in missing:
            with ShardWriter(store.path, store.manifest, spec, shard) as writer:
                found = []
                for start in range(writer.samples.start, writer.samples.stop, BATCH):
                    rows = range(start, min(start + BATCH, writer.samples.stop))
                    arrays = folder.read(rows)
                    found.append(checksums.of(rows, arrays, folder.array))
                    writer.append(arrays)
                    bar.update(len(rows))
                store.upload_shard(writer.commit(np.concatenate(found), ()))
