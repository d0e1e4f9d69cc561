"""The split of a file, as its name states it."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePath
from typing import TypeAlias

from ..errors import SourceError

Groups: TypeAlias = Mapping[str | None, Sequence[str]]
"""The files of each split; those of None state no split."""

Rule: TypeAlias = Callable[[str], str | None]
"""Returns the split of a file."""

_KEYWORD = re.compile(r"(?:^|[^a-z])(train|val|valid|validation|test)(?:[^a-z]|$)")
_HUB_NAME = re.compile(r"(\w+)-\d+-of-\d+(-\w+)?\.\w+")  # train_small-00000-of-00001.parquet, as on the Hub


def keyword_of(file: str) -> str | None:
    """Return the usual name of a split that the path of a file contains."""
    found = _KEYWORD.search(file.lower())
    return found[1] if found else None


def split_of(file: str) -> str | None:
    """Return the split that the path of a file states, by the naming of the Hugging Face Hub or a usual name."""
    path = PurePath(file)
    hub = _HUB_NAME.fullmatch(path.name)
    folder_split = keyword_of(str(path.parent))
    if hub and (keyword_of(hub[1]) or not folder_split):
        return hub[1]
    return keyword_of(path.name) or folder_split


def group_by_split(files: Sequence[str], rule: Rule) -> dict[str | None, list[str]]:
    """Return the files of each split, in the given order."""
    groups: dict[str | None, list[str]] = {}
    for file in files:
        groups.setdefault(rule(file), []).append(file)
    return groups


def select_split(path: str, groups: Groups, split: str | None, otherwise: str) -> Sequence[str]:
    """Return the files of a split.

    Args:
        path: the source, for errors.
        groups: the files of each split.
        split: the split to read. None: the only one.
        otherwise: what to do instead of choosing a split, with `{split}` for the name of one, for errors.

    Raises:
        SourceError: there is no such split, or there are several and none is chosen.
    """
    names = sorted(name for name in groups if name is not None)
    unnamed = f"{groups[None][0]}, which states no split" if None in groups else ""
    if split is not None:
        if split not in groups:
            raise SourceError(f"{path} has no split {split}: found {', '.join(filter(None, [*names, unnamed]))}")
        return groups[split]
    if len(groups) > 1:
        found = ", ".join(filter(None, [*names, unnamed]))
        example = "train" if "train" in groups else names[0]
        raise SourceError(
            f"{path} contains several splits ({found}): read one with --split {example}, or "
            f"{otherwise.format(split=example)}"
        )
    (files,) = groups.values()
    return files
