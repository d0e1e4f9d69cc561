"""What became of the files of a store's source: images found, encoded and quarantined, and files skipped.

`encode`, `store info` and reports show the same counts in the same words.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ...errors import StoreError
from ...sources import SkipCounter, Skipped, SourceOptions, describe_skipped, recorded_skipped
from ...stores import Store, open_store
from ...stores.layout import shard_range
from ...stores.manifest import Quarantined
from ...stores.upload import store_exists

_DETAILS = re.compile(r" ?\([^()]*(?:\([^()]*\)[^()]*)*\)| ?b?'[^']*'")  # in parentheses, or quoted
_NUMBER = re.compile(r"(?<!\w)\d[\d,]*")  # not that of JPEG2000
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class ImageCounts:
    """Counts of one store.

    Attributes:
        found: images in the source, which are the samples of the store.
        class_names: name of label i.
        encoded: images that are encoded in all groups.
        quarantined: images that could not be decoded, by reason; the most frequent one is first.
        skipped: files of the source that are not samples, by reason. None: the store did not record them.
    """

    found: int
    class_names: tuple[str, ...]
    encoded: int
    quarantined: tuple[Skipped, ...]
    skipped: tuple[Skipped, ...] | None

    def properties(self) -> tuple[tuple[str, str], ...]:
        """Return the counts as pairs of a heading and a text."""
        names = ", ".join(self.class_names[:3]) + (", …" if len(self.class_names) > 3 else "")
        classes = f"{len(self.class_names):,} {'class' if len(self.class_names) == 1 else 'classes'}"
        return (
            ("Images found", f"{self.found:,} in {classes} ({names})"),
            ("Encoded", f"{self.encoded:,}"),
            ("Quarantined", _describe_quarantined(self.quarantined)),
            ("Skipped", describe_skipped(self.skipped)),
        )

    def require_good_image(self, location: str) -> None:
        """Raise StoreError if no image could be decoded."""
        if self.quarantined and sum(each.count for each in self.quarantined) == self.found:
            raise StoreError(
                f"none of the images of {location} could be decoded (quarantined "
                f"{_describe_quarantined(self.quarantined)}): check the source, and create a new store"
            )


def count_images(store: Store, groups: Sequence[str] | None = None) -> ImageCounts:
    """Count the images of a store.

    Args:
        store: the store.
        groups: only these groups. None: all.
    """
    names = store.group_names() if groups is None else list(groups)
    quarantined = store.quarantined(names)
    committed = set.intersection(*(set(store.group(name).commits) for name in names)) if names else set()
    size = store.manifest.shard_size
    done = sum(len(shard_range(shard, len(store), size)) for shard in committed)
    return ImageCounts(
        found=len(store),
        class_names=store.manifest.class_names,
        encoded=done - sum(index // size in committed for index in quarantined),
        quarantined=_by_reason(quarantined.values()),
        skipped=recorded_skipped(store.manifest.source),
    )


def listed_as_store(location: str, options: SourceOptions) -> SourceOptions:
    """Return options with the rules of listing that an existing store was created with: its index depends on them.

    Raises:
        StoreError, SourceError: the store cannot be opened, or was created by a later version.
    """
    if not store_exists(location):
        return options
    with open_store(location) as store:
        return options.listed_as(store.manifest.source)


def _by_reason(quarantined: Iterable[Quarantined]) -> tuple[Skipped, ...]:
    """Count images by reason, without the details of each image; N stands for numbers that differ."""
    entries = sorted(quarantined, key=lambda entry: entry.index)
    reasons = [_DETAILS.sub("", entry.reason) for entry in entries]
    variants: dict[str, set[str]] = defaultdict(set)
    for reason in reasons:
        variants[_NUMBER.sub("N", reason)].add(reason)
    counter = SkipCounter()
    for entry, reason in zip(entries, reasons, strict=True):
        pattern = _NUMBER.sub("N", reason)
        counter.add(pattern if len(variants[pattern]) > 1 else reason, entry.key)
    return counter.result()


def _describe_quarantined(quarantined: Sequence[Skipped]) -> str:
    if not quarantined:
        return "none"
    total = sum(each.count for each in quarantined)
    shown = "; ".join(f"{each.reason} ({each.count:,}, such as {each.example})" for each in quarantined[:_SHOWN])
    more = f"; {len(quarantined) - _SHOWN} more reasons" if len(quarantined) > _SHOWN else ""
    return f"{total:,}: {shown}{more}"
