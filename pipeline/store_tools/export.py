"""`repa-pipe store export`: copy samples to the layout of REPA's or LightningDiT's preprocessing, or to safetensors."""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...converter import read_json
from ...errors import StoreError
from ...sources import Record, Source, decode_crop, open_recorded, records_of
from ...stores import Store, open_store
from ...stores.files import atomic_write_bytes, remove_leftovers, write_json
from ...stores.layout import FIXED, FLIPPED, LABEL
from ...stores.layout import MOMENTS as MOMENTS_ARRAY
from ...stores.selection import digest_of_rows
from ..runtime.lease import lease
from ..runtime.progress import progress
from .import_repa import IMAGES, LABELS, MOMENTS

BATCH = 256  # samples per read
RECORD = "export.json"
LIGHTNINGDIT_ROWS = 10_000  # per file, as published
LIGHTNINGDIT_STATISTICS = "latents_stats.pt"


def export(
    store_path: str,
    out: str,
    layout: str,
    groups: Sequence[str],
    source: str | None,
    *,
    source_kind: str | None = None,
) -> str:
    """Copy every valid sample of `groups` to the folder `out`; re-running with the same arguments resumes.

    `export.json` in the folder records what is exported, so that a folder never holds files of two exports.

    Args:
        store_path: the store.
        out: output folder: new, empty, or that of the same export.
        layout: "repa", "lightningdit" or "safetensors".
        groups: names of groups; empty for all.
        source: location of the images, for REPA's layout. None: the location they were encoded from.
        source_kind: kind of `source`. None: see `sources.open_recorded`.

    Returns:
        A summary in one line.

    Raises:
        StoreError: a group is missing or incomplete, REPA's layout cannot hold the groups, or the folder holds
            something else.
        SourceError: the images cannot be read.
    """
    with open_store(store_path) as store:
        chosen = list(groups) or store.group_names()
        rows = store.valid_indices(chosen)
        if layout == "repa":
            _require_one_vae(store, chosen)
        if layout == "lightningdit":
            _require_flipped_latents(store, chosen)
        place = Path(out).resolve()
        with lease(place.parent, place.name):
            remove_leftovers(place)
            _claim(Path(out), _content(store, layout, chosen, rows))
            if layout == "lightningdit":
                _export_lightningdit(store, Path(out), chosen, rows)
            elif layout == "repa":
                opened = open_recorded(store.manifest.source, source, source_kind)
                _export_repa(store, Path(out), chosen, rows, opened)
            else:
                _export_safetensors(store, Path(out), chosen, rows)
    return f"{out}: {len(rows):,} samples of {', '.join(chosen)}"


def _content(store: Store, layout: str, groups: Sequence[str], rows: npt.NDArray[np.int64]) -> dict[str, Any]:
    """Return what an export consists of: JSON values."""
    return {
        "layout": layout,
        "images": store.manifest.index_digest,
        "resolution": store.manifest.resolution,
        "num_samples": len(rows),
        "samples": digest_of_rows(rows),
        "groups": {name: store.group(name).attributes for name in groups},
    }


def _claim(out: Path, content: dict[str, Any]) -> None:
    """Record the content of an export in its folder; StoreError if the folder holds anything else."""
    record = out / RECORD
    found = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    if found != [RECORD] and record.exists():  # with the record alone, an export failed before its first file
        recorded = read_json(record, StoreError)
        different = [name for name, value in content.items() if recorded.get(name) != value]
        if different:
            raise StoreError(
                f"{out} holds another export (different: {', '.join(different)}): delete it or specify another folder"
            )
        return
    if found not in ([], [RECORD]) or (out.exists() and not out.is_dir()):
        raise StoreError(
            f"{out} is not an empty folder or an export with {RECORD} (found {', '.join(found[:3]) or 'a file'}): "
            "delete it or specify another folder"
        )
    write_json(record, content)


def _require_one_vae(store: Store, groups: Sequence[str]) -> None:
    latents = [name for name in groups if name.startswith("latents/")]
    if len(latents) != 1:
        raise StoreError(
            f"REPA's layout holds the moments of one VAE: expected one group of latents in {store.location}, found "
            f"{', '.join(latents) or 'none'}; specify it with --group"
        )
    if store.group(latents[0]).latents_array != MOMENTS_ARRAY:
        raise StoreError(f"REPA's layout holds moments, but {latents[0]} of {store.location} holds fixed latents")


def _require_flipped_latents(store: Store, groups: Sequence[str]) -> None:
    """Raise StoreError unless a single group of fixed latents with flips is exported, as LightningDiT reads them."""
    found = [name for name in groups if name.startswith("latents/")]
    if len(found) != 1 or len(groups) != 1:
        raise StoreError(
            f"LightningDiT's layout holds the latents of one VAE and no features: expected one group of latents, found "
            f"{', '.join(groups)}; specify it with --group"
        )
    names = [array.name for array in store.group(found[0]).arrays]
    if names != [FIXED, FIXED + FLIPPED]:
        raise StoreError(
            f"LightningDiT's layout holds fixed latents and those of mirrored images, but {found[0]} of "
            f"{store.location} holds {', '.join(names)}"
        )


def _export_lightningdit(store: Store, out: Path, groups: Sequence[str], rows: npt.NDArray[np.int64]) -> None:
    """Write `latents_rank00_shard000.safetensors`, … of 10,000 rows each, in the order of the store, and statistics."""
    import torch
    from safetensors.numpy import save

    group = store.group(groups[0])
    scale, bias = (torch.tensor(group.attributes[name]).reshape(1, -1, 1, 1) for name in ("scale", "bias"))
    sink = io.BytesIO()
    torch.save({"mean": -bias / scale, "std": 1 / scale}, sink)
    atomic_write_bytes(out / LIGHTNINGDIT_STATISTICS, sink.getvalue())
    names = {"latents": f"{group.path}/{FIXED}", "latents_flip": f"{group.path}/{FIXED}{FLIPPED}"}
    with progress("export", len(rows), "samples") as bar:
        for number, start in enumerate(range(0, len(rows), LIGHTNINGDIT_ROWS)):
            part, path = rows[start : start + LIGHTNINGDIT_ROWS], out / f"latents_rank00_shard{number:03d}.safetensors"
            if not path.exists():
                found = store.read(list(names.values()), part)
                tensors = {name: found[array] for name, array in names.items()}
                labels = store.labels_at(part).astype(np.int64)
                facts = {"total_size": str(len(part)), "dtype": str(tensors["latents"].dtype), "device": "cpu"}
                atomic_write_bytes(path, save(tensors | {"labels": labels}, facts))
            bar.update(len(part))


def _export_repa(store: Store, out: Path, groups: Sequence[str], rows: npt.NDArray[np.int64], source: Source) -> None:
    """Write `images/00000/img00000000.png`, `vae-sd/00000/img-mean-std-00000000.npy`, and both `dataset.json`."""
    (latents,) = (name for name in groups if name.startswith("latents/"))
    records = list(records_of(store.samples.take(rows)))
    names = [(f"{i // 1000:05d}/img{i:08d}.png", f"{i // 1000:05d}/img-mean-std-{i:08d}.npy") for i in range(len(rows))]
    with progress("export", len(rows), "images") as bar, ThreadPoolExecutor() as pool:

        def write(i: int, moments: npt.NDArray[Any]) -> None:
            image, array = out / IMAGES / names[i][0], out / MOMENTS / names[i][1]
            if not image.exists():
                atomic_write_bytes(image, _png(source, records[i], store.manifest.resolution))
            if not array.exists():
                atomic_write_bytes(array, _npy(moments))
            bar.update()

        for start in range(0, len(rows), BATCH):
            block = store.read([f"{latents}/moments"], rows[start : start + BATCH])[f"{latents}/moments"]
            list(pool.map(write, range(start, start + len(block)), block))
    for folder, column in ((IMAGES, 0), (MOMENTS, 1)):
        pairs = [[name[column], record.label] for name, record in zip(names, records, strict=True)]
        write_json(out / folder / LABELS, {"labels": pairs})


def _png(source: Source, record: Record, side: int) -> bytes:
    from PIL import Image

    sink = io.BytesIO()
    Image.fromarray(decode_crop(source.read(record), side)).save(sink, "png", compress_level=0)
    return sink.getvalue()


def _npy(array: npt.NDArray[Any]) -> bytes:
    sink = io.BytesIO()
    np.save(sink, array)
    return sink.getvalue()


def _export_safetensors(store: Store, out: Path, groups: Sequence[str], rows: npt.NDArray[np.int64]) -> None:
    """Write `store.json`, and one `00000.safetensors` per shard with every array of the groups, `label` and `index`."""
    from safetensors.numpy import save

    attributes = {name: store.group(name).attributes for name in groups}
    facts = {"class_names": list(store.manifest.class_names), "groups": attributes}
    write_json(out / "store.json", facts)
    shards = rows // store.manifest.shard_size
    with progress("export", len(rows), "samples") as bar:
        for shard in np.unique(shards).tolist():
            wanted, path = rows[shards == shard], out / f"{shard:05d}.safetensors"
            if not path.exists():
                atomic_write_bytes(path, save(store.read([*groups, LABEL], wanted) | {"index": wanted}))
            bar.update(len(wanted))
