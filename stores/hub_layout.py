"""Which files of a store go to the Hugging Face Hub, in which order, and whether the Hub takes so many.

The order is that of the commit protocol: the files of a shard together with its commit record, in one commit of the
repository, which is atomic; last the metadata, without which no reader finds a store.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from ..errors import ConfigError, StoreError
from .files import TEMPORARY
from .layout import LABEL, QUARANTINE_FILE, SAMPLES_FILE, commit_file, num_shards
from .statistics import PERS, statistics_file
from .store import Store
from .zarr_metadata import METADATA_FILE

MAX_FOLDER_ENTRIES = 10_000  # of the Hub, huggingface.co/docs/hub/storage-limits
RECOMMENDED_FILES = 100_000
MAX_FILE_BYTES = 50 * 10**9


def chosen_groups(names: Sequence[str], existing: Sequence[str], where: str) -> list[str]:
    """Return the groups with these names, or all; raise StoreError if one does not exist."""
    for name in names:
        if name not in existing:
            raise StoreError(f"{where} has no group '{name}': expected one of {', '.join(existing) or 'none'}")
    return [name for name in existing if not names or name in names]


def chosen_shards(text: str | None, num_samples: int, shard_size: int) -> range:
    """Return the shards of `FIRST:STOP`, all if `text` is None.

    Raises:
        ConfigError: `text` has another form, or lists no shard of the store.
    """
    total = num_shards(num_samples, shard_size)
    if text is None:
        return range(total)
    first, colon, stop = text.partition(":")
    if colon and all(not part or part.isdecimal() for part in (first, stop)):
        found = range(int(first or 0), min(int(stop or total), total))
        if found:
            return found
    raise ConfigError(f"--shards {text}: expected FIRST:STOP within 0:{total}, such as 0:{min(10, total)}")


def metadata_files(store: Store, groups: Iterable[str]) -> list[str]:
    """Return the metadata files of a store in a folder for these groups, the root's zarr.json last."""
    folder = store.path
    names = [SAMPLES_FILE, QUARANTINE_FILE, f"{LABEL}/{METADATA_FILE}", f"{LABEL}/c/0"]
    for group in groups:
        names += [f"{group.split('/')[0]}/{METADATA_FILE}", f"{group}/{METADATA_FILE}"]
        names += [str(path.relative_to(folder)) for path in sorted((folder / group).glob(f"*/{METADATA_FILE}"))]
        names += [statistics_file(group, per) for per in PERS if group.startswith("features/")]
    present = [name for name in dict.fromkeys(names) if TEMPORARY not in name and (folder / name).is_file()]
    return [*present, METADATA_FILE]


def shard_paths(group: str, shard: int, files: Iterable[str]) -> list[str]:
    """Return the paths of a shard in the store: its files, and last its commit record."""
    return [*(f"{group}/{name}" for name in sorted(files)), commit_file(group, shard)]


def require_limits(paths: Iterable[str], sizes: Mapping[str, int], num_samples: int) -> str | None:
    """Raise StoreError if the Hub does not take these files; return a warning if it discourages so many.

    Args:
        paths: all files that the repository then has.
        sizes: bytes of files, as far as known.
        num_samples: images of the store, for the remedy.
    """
    entries: set[str] = set()
    count = 0
    for path in paths:
        count += 1
        entry = path
        while entry and entry not in entries:
            entries.add(entry)
            entry = entry.rpartition("/")[0]
    folder, most = Counter(entry.rpartition("/")[0] for entry in entries).most_common(1)[0]
    if most > MAX_FOLDER_ENTRIES:
        size = 1 << (-(-num_samples // MAX_FOLDER_ENTRIES) - 1).bit_length()
        raise StoreError(
            f"{folder}/ has {most:,} entries, and the Hub takes at most {MAX_FOLDER_ENTRIES:,} per folder: encode the "
            f"images into a store with larger shards ('repa-pipe encode … --shard-size {size}')"
        )
    path, largest = max(sizes.items(), key=lambda item: item[1], default=("", 0))
    if largest > MAX_FILE_BYTES:
        raise StoreError(
            f"{path} has {largest:,} bytes, and the Hub takes at most {MAX_FILE_BYTES:,} per file: encode the images "
            "into a store with smaller shards ('repa-pipe encode … --shard-size N')"
        )
    if count <= RECOMMENDED_FILES:
        return None
    return (
        f"the repository then has {count:,} files; the Hub recommends at most {RECOMMENDED_FILES:,}: larger shards, or "
        "one repository per group (--group), make fewer"
    )
