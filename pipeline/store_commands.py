"""`repa-pipe store …`: what is in a store, and whether it is still what was written."""

from __future__ import annotations

from pathlib import Path

from ..sources import index_digest
from ..stores import Group, open_store
from ..stores.layout import num_shards
from ..stores.verify import drop_bad_shards, verify_store
from .progress import progress


def info(path: str) -> str:
    """A store in words: images, groups, weights, completeness, bytes. Raises StoreError when there is none."""
    store = open_store(path)
    manifest = store.manifest
    lines = [
        f"{path}: {len(store):,} images of {len(manifest.class_names)} classes at {manifest.resolution} px "
        f"({manifest.crop}), shards of {manifest.shard_size}",
        f"  images from {manifest.source['path']} ({manifest.source['kind']}), digest {manifest.index_digest[:12]}",
    ]
    total = num_shards(len(store), manifest.shard_size)
    for name in store.group_names():
        lines += _describe(store.group(name), total)
    return "\n".join(lines)


def _describe(group: Group, total: int) -> list[str]:
    files = [file["bytes"] for commit in group.commits.values() for file in commit.files.values()]
    arrays = ", ".join(f"{array.name} {list(array.sample_shape)} {array.dtype}" for array in group.arrays)
    weights = str(group.fingerprint.get("weights_sha256", "?"))[:12]
    return [
        f"  {group.path}: {len(group.commits)} of {total} shards, {sum(files) / 2**20:,.1f} MiB, "
        f"{len(group.quarantined)} images quarantined",
        f"    {arrays} a sample; weights sha256 {weights}…",
    ]


def verify(path: str, repair: bool) -> tuple[str, bool]:
    """Read everything back; the findings in words, and whether all is well."""
    store = open_store(path)
    with progress("verify", 0, "bytes") as bar:
        report = verify_store(Path(path), progress=bar.reach)
    lines = [str(problem) for problem in report.problems]
    if index_digest(store.samples) != store.manifest.index_digest:
        lines.append(f"{path}/samples.parquet is not the index that the store was made from")
    if repair and report.problems:
        dropped = drop_bad_shards(Path(path), report)
        lines.append(f"dropped {dropped} shards: run 'repa-pipe encode' again to make them anew")
    return "\n".join(lines or ["every byte is as it was written"]), not lines
