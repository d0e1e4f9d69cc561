"""`repa-pipe store info`, `ls`, `stats` and `verify`: show the contents of a store and verify them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ...errors import RemoteError, StoreError
from ...sources import index_digest
from ...stores import Group, Store, open_store
from ...stores.layout import latents_group, num_shards
from ...stores.metadata_writer import consolidate, copy_is_current, record_digests, set_attributes
from ...stores.remote import is_url, local_folder
from ...stores.statistics import PERS, read_statistics
from ...stores.verify import VerifyReport, drop_bad_shards, verify_store
from ..artifacts.image_counts import count_images
from ..reporting.tables import count_text
from ..runtime.printable import one_line
from ..runtime.progress import progress

STATS_BATCH = 256  # images per read


def info(path: str) -> str:
    """Return a description of a store: images, groups, weights, completeness, sizes; StoreError when there is none."""
    with open_store(path) as store:
        return "\n".join(map(one_line, _lines_about(path, store)))


def _lines_about(path: str, store: Store) -> list[str]:
    manifest = store.manifest
    lines = [
        f"{path}: {count_text(len(store), 'image', 'images')} of "
        f"{count_text(len(manifest.class_names), 'class', 'classes')} at {manifest.resolution} px "
        f"({manifest.crop}), {manifest.shard_size:,} samples per shard",
        f"  images from {manifest.source['path']} ({manifest.source['kind']}), digest {manifest.index_digest[:12]}",
    ]
    lines += [f"  {heading.lower()}: {text}" for heading, text in count_images(store).properties()]
    total = num_shards(len(store), manifest.shard_size)
    for name in store.group_names():
        lines += _describe(store.group(name), total)
        lines += _statistics_of(store, name)
    return lines


def _describe(group: Group, total: int) -> list[str]:
    arrays = ", ".join(f"{array.name} {list(array.sample_shape)} {array.dtype}" for array in group.arrays)
    cosine = group.token_cosine
    notes = "" if cosine is None else f"; codec cosine {cosine[0]:.5f} (min {cosine[1]:.5f})"
    std = group.latents_std
    notes += "" if std is None else f"; std of scaled latents {std:.3f}"
    if count := len(group.float32_samples):
        notes += f"; encoded in float32 after an overflow: {count:,}"
    weights = str(group.fingerprint.get("weights_sha256", "?"))[:12]
    return [
        f"  {group.path}: {len(group.commits)} of {total} shards, {group.num_bytes / 2**20:,.1f} MiB, "
        f"{count_text(len(group.quarantined), 'image', 'images')} quarantined",
        f"    per sample: {arrays}; weights sha256 {weights}…{notes}",
    ]


def _statistics_of(store: Store, group: str) -> list[str]:
    """Describe the recorded statistics of a features group."""
    if not group.startswith("features/"):
        return []
    lines = []
    for per in PERS:
        try:
            found = read_statistics(store, group, per)
        except StoreError as error:  # the rest can be shown
            lines.append(f"    statistics per {per}: {error}")
            continue
        lines += [f"    statistics per {per}: {found.record.describe()}"] if found else []
    return lines


def list_samples(path: str, class_name: str | None, quarantined: bool, limit: int) -> str:
    """List the samples of a store, one per line: index, class, bytes of the source image, key, reason of quarantine.

    Args:
        path: the store.
        class_name: only samples of this class.
        quarantined: only quarantined samples.
        limit: maximum number of samples; 0 for all.

    Raises:
        StoreError: there is no store, or it has no such class.
    """
    with open_store(path) as store:
        return "\n".join(_sample_lines(path, store, class_name, quarantined, limit))


def _sample_lines(path: str, store: Store, class_name: str | None, quarantined: bool, limit: int) -> list[str]:
    names = store.manifest.class_names
    if class_name is not None and class_name not in names:
        raise StoreError(f"{path} has no class {class_name!r}: expected one of {_first(names)}")
    bad = {index: [entry.reason] for index, entry in store.quarantined().items()}
    labels = store.labels
    chosen = np.arange(len(store)) if class_name is None else np.flatnonzero(labels == names.index(class_name))
    if quarantined:
        chosen = chosen[np.isin(chosen, list(bad))]
    shown = chosen[:limit] if limit else chosen
    rows = store.samples.take(shown).to_pylist()
    lines = [
        "\t".join(map(one_line, [str(i), names[row["label"]], str(row["num_bytes"]), row["key"], *bad.get(i, [])]))
        for i, row in zip(shown.tolist(), rows, strict=True)
    ]
    if len(shown) < len(chosen):
        lines.append(f"… and {len(chosen) - len(shown):,} more; --limit 0 lists all")
    return lines


def stats(path: str, vae: str, write: bool) -> str:
    """Measure the scale and bias that give every channel of the latents mean 0 and standard deviation 1.

    Latents are samples from the posterior: their variance is the variance of its means plus the mean of its variances.

    Args:
        path: the store.
        vae: name of the VAE of the latents.
        write: replace scale and bias in the attributes of the group by the measured values.

    Raises:
        StoreError: the group is missing or incomplete.
    """
    with open_store(path) as store:
        group = store.group(latents_group(store.vae_name(vae)))
        rows = store.valid_indices([group.path])
        scale, bias = _scale_and_bias(store, group, rows)
        if write:
            set_attributes(store.path, group.path, {"scale": scale.tolist(), "bias": bias.tolist()})
            store.upload_group(group.path)
    lines = [f"{group.path}: measured on {len(rows):,} images{', written to the store' if write else ''}"]
    recorded = zip(group.attributes["scale"], group.attributes["bias"], scale, bias, strict=True)
    lines += [
        f"  channel {channel}: scale {a:.5f} (recorded {old_a:.5f}), bias {b:+.5f} ({old_b:+.5f})"
        for channel, (old_a, old_b, a, b) in enumerate(recorded)
    ]
    return "\n".join(map(one_line, lines))


def _scale_and_bias(
    store: Store, group: Group, rows: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return scale and bias per channel, `[C]` each, of the samples at `rows`."""
    name, channels = f"{group.path}/{group.latents_array}", group.latents_channels
    sums = np.zeros((2, channels))
    count = 0
    with progress(f"read {group.latents_array}", len(rows), "images") as bar:
        for start in range(0, len(rows), STATS_BATCH):
            block = store.read([name], rows[start : start + STATS_BATCH])[name].astype(np.float64)
            mean, std = block[:, :channels], block[:, channels:]
            std = std if std.size else np.zeros_like(mean)  # fixed latents have none
            sums += [mean.sum((0, 2, 3)), (mean**2 + std**2).sum((0, 2, 3))]
            count += mean[:, 0].size
            bar.update(len(block))
    mean, square = sums / count
    scale = 1 / np.sqrt(square - mean**2)
    return scale, -mean * scale


def verify(path: str, repair: bool, accept_metadata: bool = False) -> tuple[str, bool]:
    """Compare every committed shard with its checksums; return the findings, and whether the store is intact.

    With `repair`, damaged shards are dropped, so that `encode` encodes them again. With `accept_metadata`, checksums of
    the metadata, the labels and the sample index are first recorded as they are now.
    """
    if accept_metadata:
        if is_url(path):
            raise StoreError(f"{path} is a URL: run --accept-metadata on the disk that holds the store")
        record_digests(local_folder(path))
    report = verified(path)
    lines = [str(problem) for problem in report.problems]
    with open_store(path) as store:
        lines += _index_problems(path, store)
    healthy = not lines
    if repair and report.problems:
        dropped = drop_bad_shards(path, report)
        shards = "1 shard" if dropped == 1 else f"{dropped:,} shards"
        lines.append(f"dropped {shards}: re-run 'repa-pipe encode' to encode them again")
    elif report.bad_shards:
        lines.append(f"run 'repa-pipe store repair --store {path}' to encode damaged shards again")
    if repair and not is_url(path) and not copy_is_current(local_folder(path)):
        consolidate(local_folder(path))
        lines.append("updated the copy of the metadata in zarr.json")
    if healthy:
        lines.append("all committed shards match their checksums")
    with open_store(path) as store:  # reopened, since shards may have been dropped
        if not store.has_digest or not all(store.group(name).has_digest for name in store.group_names()):
            lines.append(
                "metadata, labels and sample index were not checked: an earlier version wrote them without checksums; "
                "--accept-metadata records these"
            )
        total = num_shards(len(store), store.manifest.shard_size)
        for name in store.group_names():
            if missing := len(store.group(name).missing_shards()):
                lines.append(f"{name} is incomplete: {missing:,} of {total:,} shards are missing")
    return "\n".join(map(one_line, lines)), healthy


def verified(path: str) -> VerifyReport:
    """Verify a store with a progress line, which a store that cannot be opened does not get; see `verify_store`."""
    open_store(path).close()
    with progress("verify", 0, "bytes") as bar:
        return verify_store(path, progress=bar.reach)


def _index_problems(path: str, store: Store) -> list[str]:
    try:
        intact = index_digest(store.samples) == store.manifest.index_digest
    except RemoteError:
        raise
    except StoreError as error:
        return [str(error)]
    return [] if intact else [f"{path}/samples.parquet does not match the index digest recorded in the store"]


def _first(names: Sequence[str], count: int = 5) -> str:
    return ", ".join(names[:count]) + (", …" if len(names) > count else "")
