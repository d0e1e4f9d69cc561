"""Files of a source that do not become samples: counted by reason, with an example of each."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..converter import structure, unstructure
from ..errors import SourceError

RECORDED = "skipped"
"""The key under which a store records the skipped files, next to kind and path of its source."""

_MAX_REASONS = 20  # a folder of temporary files has as many endings as files
_OTHER = "other endings"


@dataclass(frozen=True, slots=True)
class Skipped:
    """Files of a source that did not become samples, for one reason."""

    reason: str
    count: int
    example: str  # name of the first


class SkipCounter:
    """Counts skipped files by reason."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[int, str]] = {}

    def add(self, reason: str, example: str, count: int = 1) -> None:
        """Count files; the first example of a reason is kept."""
        if count:
            before, first = self._found.get(reason, (0, example))
            self._found[reason] = (before + count, first)

    def merge(self, other: "SkipCounter") -> None:
        """Add the counts of another part of the source."""
        for reason, (count, example) in other._found.items():
            self.add(reason, example, count)

    def of(self, reason: str) -> Skipped | None:
        """Return the files that were skipped for a reason, if any."""
        return Skipped(reason, *self._found[reason]) if reason in self._found else None

    def result(self) -> tuple[Skipped, ...]:
        """Return all counts, the largest first; the rarest endings are counted together."""
        found = sorted((-count, reason, example) for reason, (count, example) in self._found.items())
        rest = [(-count, example) for count, _, example in found[_MAX_REASONS:]]
        others = [Skipped(_OTHER, sum(count for count, _ in rest), rest[0][1])] if rest else []
        return (*(Skipped(reason, -count, example) for count, reason, example in found[:_MAX_REASONS]), *others)


def count_files_below(folder: str) -> int:
    """Return the number of files in and below a folder that is skipped; links to folders count as files."""
    count = 0

    def unreadable(_: OSError) -> None:  # lost+found belongs to root: it counts as one file
        nonlocal count
        count += 1

    for parent, folders, files in os.walk(folder, onerror=unreadable):
        count += len(files) + sum(os.path.islink(f"{parent}/{name}") for name in folders)  # noqa: PTH114
    return count


def skipped_as_json(skipped: Iterable[Skipped]) -> list[dict[str, Any]]:
    """Return skipped files as plain JSON values, as a store records them."""
    return [unstructure(each) for each in skipped]


def recorded_skipped(recorded: Mapping[str, Any]) -> tuple[Skipped, ...] | None:
    """Return the skipped files that a store recorded with its source. None: its version did not record them.

    Raises:
        SourceError: the record is damaged.
    """
    if RECORDED not in recorded:
        return None
    where = "skipped files recorded in the store"
    return tuple(structure(each, Skipped, where, SourceError) for each in recorded[RECORDED])


def describe_skipped(skipped: Iterable[Skipped] | None) -> str:
    """Return `12 files: hidden (10, such as .git/HEAD), ending .txt (2, such as a.txt)`."""
    if skipped is None:
        return "not recorded (the store was created by an earlier version)"
    found = list(skipped)
    if not found:
        return "no files"
    total = sum(each.count for each in found)
    reasons = ", ".join(f"{each.reason} ({each.count:,}, such as {each.example})" for each in found)
    return f"{total:,} {'file' if total == 1 else 'files'}: {reasons}"
