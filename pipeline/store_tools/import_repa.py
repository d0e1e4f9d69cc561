"""`repa-pipe store import-repa`: the layout of REPA's preprocessing to a store.

That layout is `images/` (crops as PNG) and `vae-sd/` (one .npy of moments an image, `dataset.json` with labels),
paired by sorted file names (dataset.py of the published code). Encoders are added afterwards by
`repa-pipe encode --source DIR/images`.
"""

from __future__ import annotations

import io
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

from ...errors import SourceError
from ...sources import Index, Record, Source, index_digest, open_source, records_of
from ...stores import Store, open_store
from ...stores.checksum import crc32c_bytes
from ...stores.layout import ArraySpec, GroupSpec, default_shard_size, latents_group, shard_range
from ...stores.manifest import Manifest
from ...stores.upload import create_store_at, store_exists
from ...stores.writer import ShardWriter
from ..artifacts.published import LATENTS_SCALE
from ..encoding.work import CROP, prepare_groups
from ..runtime.progress import progress

IMAGES, MOMENTS, LABELS = "images", "vae-sd", "dataset.json"


def import_repa(folder: str, store_path: str, vae: str) -> str:
    """Import moments and labels; the same command continues. What was done, in words.

    Raises SourceError when the folder is not of that layout or its parts do not fit together, StoreError when the
    store was made from something else.
    """
    root = Path(folder)
    for name in (IMAGES, MOMENTS):
        if not (root / name).is_dir():
            raise SourceError(f"{root} has no folder {name}: expected REPA's layout, with {IMAGES}/ and {MOMENTS}/")
    source = open_source(str(root / IMAGES), "folder")
    index, files = source.index(), _moment_files(root / MOMENTS)
    _require_pairs(index, files, root)
    shape = _load(files[0]).shape
    side = _side(source, index)
    store = _open_or_create(store_path, source, index, side)
    spec = GroupSpec(
        path=latents_group(vae),
        arrays=(ArraySpec(name="moments", sample_shape=shape, dtype="float32"),),
        attributes={
            "vae": vae,
            "fingerprint": {"imported_from": "REPA's vae-sd folder", "resolution": side},
            "scale": [LATENTS_SCALE] * (shape[0] // 2),
            "bias": [0.0] * (shape[0] // 2),
        },
    )
    prepare_groups(store, [spec])
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
    return (
        f"{store_path}: {len(store):,} images, {spec.path} {list(shape)}; add encoders with "
        f"'repa-pipe encode --source {root / IMAGES} --store {store_path} --vae {vae} --encoder NAME'"
    )


def _moment_files(folder: Path) -> list[Path]:
    files = sorted(folder.rglob("*.npy"), key=lambda file: str(file.relative_to(folder)))
    if not files:
        raise SourceError(f"{folder} holds no .npy files: expected REPA's layout, with {IMAGES}/ and {MOMENTS}/")
    return files


def _require_pairs(index: Index, files: list[Path], root: Path) -> None:
    """Images and moments are as many, in the order in which REPA pairs them, with the same labels."""
    keys = index["key"].to_pylist()
    if len(keys) != len(files):
        raise SourceError(f"{root} has {len(keys):,} images and {len(files):,} .npy files: they must be as many")
    if keys != sorted(keys):
        raise SourceError(f"{root / IMAGES}: folders are not in the order of names: expected what REPA's tools wrote")
    path = root / MOMENTS / LABELS
    try:
        labels = dict(json.loads(path.read_bytes())["labels"])
        wanted = [labels[str(file.relative_to(root / MOMENTS))] for file in files]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SourceError(f"{path} does not give every .npy file a label ({error!r})") from error
    different = [
        key for key, mine, theirs in zip(keys, index["label"].to_pylist(), wanted, strict=True) if mine != theirs
    ]
    if different:
        raise SourceError(
            f"{root}: {len(different):,} images have another label in {IMAGES}/ than in {MOMENTS}/, "
            f"the first is {different[0]}"
        )


def _side(source: Source, index: Index) -> int:
    record: Record = next(iter(records_of(index.slice(0, 1))))
    with Image.open(io.BytesIO(source.read(record))) as image:
        if image.width != image.height:
            raise SourceError(f"{record.key} is {image.width} x {image.height}: REPA's tools write squares")
        return image.width


def _open_or_create(path: str, source: Source, index: pa.Table, side: int) -> Store:
    if not store_exists(path):
        manifest = Manifest(
            num_samples=len(index),
            resolution=side,
            crop=CROP,
            shard_size=default_shard_size(len(index)),
            index_digest=index_digest(index),
            class_names=source.class_names,
            source=source.describe(),
        )
        create_store_at(path, manifest, index)
    store = open_store(path)
    if store.manifest.index_digest != index_digest(index):
        raise SourceError(f"{path} was made from other images than {source.path}: name another store")
    return store


def _load(file: Path, expected: tuple[int, ...] | None = None) -> npt.NDArray[Any]:
    try:
        array: npt.NDArray[Any] = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise SourceError(f"{file} cannot be read as moments ({error})") from error
    if array.ndim != 3 or array.dtype.kind != "f" or array.shape != (expected or array.shape):
        raise SourceError(f"{file} holds {array.shape} {array.dtype}: expected {expected or '[2C, h, w]'} floats")
    return array.astype(np.float32, copy=False)
