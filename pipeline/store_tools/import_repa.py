"""`repa-pipe store import-repa`: import the layout of REPA's preprocessing into a store.

The layout is `images/` (crops as PNG) and `vae-sd/` (one .npy of moments per image, and `dataset.json` with labels),
paired by sorted file names (dataset.py of the published code). `repa-pipe encode --source DIR/images …` adds encoders
afterwards.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...converter import read_json, structure
from ...errors import BadImageError, ConfigError, SourceError, StoreError, WeightsError
from ...models.vae_files import describe_vae, is_known_vae, latents_scale_and_bias
from ...sources import DEFAULTS, Index, Record, Source, index_digest, open_source, records_of
from ...sources.decode import image_size
from ...stores import Store, open_store
from ...stores.checksum import crc32c_bytes
from ...stores.creation import open_or_create_store, prepare_groups
from ...stores.layout import ArraySpec, GroupSpec, latents_group, shard_range
from ...stores.writer import ShardWriter
from ..artifacts.image_counts import listed_as_store
from ..encoding.latents_scale import warn_of_unusual_scale
from ..runtime.progress import progress

IMAGES, MOMENTS, LABELS = "images", "vae-sd", "dataset.json"
MAX_LABELS_BYTES = 2 << 30  # 45 bytes per image


@dataclass(frozen=True, slots=True)
class _Labels:
    """The contents of `dataset.json`."""

    labels: list[tuple[str, int]]


def import_repa(folder: str, store_path: str, vae: str, latents_scale: float | None = None) -> str:
    """Import moments and labels; re-running with the same arguments resumes.

    Scale and bias of the latents are those of the VAE's config.

    Args:
        folder: folder in REPA's layout.
        store_path: the store to create or extend, a folder or a URL.
        vae: name of the VAE that encoded the moments.
        latents_scale: scale of all channels, with bias 0, for a VAE whose config cannot be read.

    Returns:
        A summary in one line.

    Raises:
        SourceError: the folder does not have that layout, or its images, moments and labels do not match.
        ConfigError: the scale of the latents is unknown, or `latents_scale` is not that of the VAE's config.
        StoreError: the store holds other images, or these moments with another scale.
    """
    root = Path(folder)
    for name in (IMAGES, MOMENTS):
        if not (root / name).is_dir():
            raise SourceError(f"{root} has no folder {name}: expected REPA's layout, with {IMAGES}/ and {MOMENTS}/")
    source = open_source(str(root / IMAGES), "folder", listed_as_store(store_path, DEFAULTS))
    index, files = source.index(), _moment_files(root / MOMENTS)
    _require_pairs(index, files, root)
    side = _side(source, index)
    spec = _moments_spec(vae, _load(files[0]).shape, side, latents_scale)
    with open_or_create_store(
        store_path,
        index,
        index_digest=index_digest(index),
        resolution=side,
        class_names=source.class_names,
        source=source.provenance(),
    ) as store:
        name = vae if is_known_vae(vae) else store.vae_name(vae)
        spec = replace(spec, path=latents_group(name), attributes=spec.attributes | {"vae": name})
        prepare_groups(store, [spec])
        _require_same_scale(store, spec)
        _import_shards(store, spec, source, index, files)
    with open_store(store_path) as store:  # reopened, since the commits have changed
        warn_of_unusual_scale(store.group(spec.path))
        return (
            f"{store_path}: {len(store):,} images, {spec.path} {list(spec.arrays[0].sample_shape)}; add encoders with "
            f"'repa-pipe encode --source {root / IMAGES} --store {store_path} --vae {vae} --encoder NAME'"
        )


def _moments_spec(vae: str, shape: tuple[int, ...], side: int, latents_scale: float | None) -> GroupSpec:
    scale, bias = _scale_and_bias(vae, shape, side, latents_scale)
    return GroupSpec(
        path=latents_group(vae),
        arrays=(ArraySpec(name="moments", sample_shape=shape, dtype="float32"),),
        attributes={
            "vae": vae,
            "fingerprint": {"imported_from": "REPA's vae-sd folder", "resolution": side},
            "scale": scale,
            "bias": bias,
        },
    )


def _scale_and_bias(
    vae: str, shape: tuple[int, ...], side: int, latents_scale: float | None
) -> tuple[list[float], list[float]]:
    """Return scale and bias from the VAE's config; `latents_scale` only if there is no config."""
    try:
        channels, downsampling = describe_vae(vae)
        scale, bias = latents_scale_and_bias(vae)
    except (ConfigError, WeightsError) as error:
        if latents_scale is None:
            raise ConfigError(f"{error}. If its config is not available, pass --latents-scale") from error
        return [latents_scale] * (shape[0] // 2), [0.0] * (shape[0] // 2)
    expected = (2 * channels, side // downsampling, side // downsampling)
    if shape != expected:
        raise SourceError(f"--vae {vae} has moments {expected} of {side} x {side} pixels, found {shape}")
    if latents_scale is not None and (set(scale), set(bias)) != ({latents_scale}, {0.0}):
        raise ConfigError(f"--latents-scale is {latents_scale:g}, but the config of {vae} has {scale[0]:g}: omit it")
    return list(scale), list(bias)


def _require_same_scale(store: Store, spec: GroupSpec) -> None:
    recorded = store.group(spec.path).attributes
    for name in ("scale", "bias"):
        if recorded[name] != spec.attributes[name]:
            raise StoreError(
                f"{store.location}: {spec.path} was imported with {name} {recorded[name]}, the VAE has "
                f"{spec.attributes[name]}: delete {store.location}/{spec.path} and {store.location}/commits/{spec.path}"
            )


def _import_shards(store: Store, spec: GroupSpec, source: Source, index: Index, files: list[Path]) -> None:
    """Write and commit the shards of the group that are missing."""
    shape = spec.arrays[0].sample_shape
    missing = store.group(spec.path).missing_shards()
    todo = sum(len(shard_range(shard, len(store), store.manifest.shard_size)) for shard in missing)
    with progress("import", len(store), "images", initial=len(store) - todo) as bar, ThreadPoolExecutor() as pool:
        for shard in missing:
            with ShardWriter(store.path, store.manifest, spec, shard) as writer:
                rows = writer.samples
                records = list(records_of(index.slice(rows.start, len(rows))))
                moments = pool.map(_load, files[rows.start : rows.stop], [shape] * len(rows))
                checksums = pool.map(lambda record: crc32c_bytes(source.read(record)), records)
                for array in moments:
                    writer.append({"moments": array[None]})
                    bar.update()
                store.upload_shard(writer.commit(np.fromiter(checksums, np.uint32), ()))


def _moment_files(folder: Path) -> list[Path]:
    files = sorted(folder.rglob("*.npy"), key=lambda file: str(file.relative_to(folder)))
    if not files:
        raise SourceError(f"{folder} has no .npy files: expected REPA's layout, with {IMAGES}/ and {MOMENTS}/")
    return files


def _require_pairs(index: Index, files: list[Path], root: Path) -> None:
    """Raise SourceError unless images and moments match in number, order and labels."""
    keys = index["key"].to_pylist()
    if len(keys) != len(files):
        raise SourceError(f"{root} has {len(keys):,} images and {len(files):,} .npy files: expected one per image")
    if keys != sorted(keys):
        raise SourceError(f"{root / IMAGES}: images are not in the order of their paths, as REPA's tools write them")
    path = root / MOMENTS / LABELS
    stated = read_json(path, SourceError, MAX_LABELS_BYTES).get("labels")  # other programs may write more
    names = [str(file.relative_to(root / MOMENTS)) for file in files]
    try:
        labels = dict(structure({"labels": stated}, _Labels, str(path), SourceError).labels)
        unlabeled = next((name for name in names if name not in labels), None)
        if unlabeled is not None:
            raise SourceError(f"{unlabeled} has none")
    except SourceError as error:
        raise SourceError(f"{path} does not have a label for every .npy file ({error})") from error
    wanted = [labels[name] for name in names]
    different = [
        key for key, mine, theirs in zip(keys, index["label"].to_pylist(), wanted, strict=True) if mine != theirs
    ]
    if different:
        raise SourceError(
            f"{root}: labels in {IMAGES}/ and {MOMENTS}/ differ for {len(different):,} of {len(keys):,} images, "
            f"first for {different[0]}"
        )


def _side(source: Source, index: Index) -> int:
    record: Record = next(iter(records_of(index.slice(0, 1))))
    try:
        width, height = image_size(source.read(record))
    except BadImageError as error:
        raise SourceError(f"{record.key}: {error}") from error
    if width != height:
        raise SourceError(f"{record.key} is {width} x {height}: expected a square, as REPA's tools write")
    return width


def _load(file: Path, expected: tuple[int, ...] | None = None) -> npt.NDArray[Any]:
    try:
        array: npt.NDArray[Any] = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise SourceError(f"{file} cannot be read as moments ({error}): restore it from a copy") from error
    if array.ndim != 3 or array.dtype.kind != "f" or array.shape != (expected or array.shape):
        raise SourceError(f"{file}: expected floats {expected or '[2C, h, w]'}, found {array.dtype} {array.shape}")
    if not np.isfinite(array).all():
        raise SourceError(f"{file}: moments are NaN or infinite: encode the image again, in float32")
    return array.astype(np.float32, copy=False)
