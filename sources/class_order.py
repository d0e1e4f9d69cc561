"""The order of class folders, which defines their labels: by name, by the numbers in their names, or from a file."""

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from ..errors import SourceError
from .options import BY_NAME, NATURAL, SourceOptions

_NUMBER = re.compile(r"(\d+)")
_SHOWN = 3


class ClassOrder:
    """The order that the options of a source request. Creating it reads the class list, if any.

    Raises:
        SourceError: there is no such file, it is not UTF-8, or it repeats a name.
    """

    def __init__(self, options: SourceOptions) -> None:
        self._order = options.class_order
        self._listed = None if self._order in (BY_NAME, NATURAL) else _read_list(self._order)

    def arrange(self, path: str, folders: Iterable[str]) -> list[str]:
        """Return the class folders in the order of their labels; those that the list omits are at the end.

        Raises:
            SourceError: the list names a folder that does not exist.
        """
        if self._listed is None:
            return sorted(folders, key=natural_key) if self._order == NATURAL else sorted(folders)
        rest = set(folders)
        if missing := [name for name in self._listed if name not in rest]:
            raise SourceError(
                f"{self._order} lists class folders that {path} does not have ({len(missing):,}: {some(missing)}): "
                "correct the list"
            )
        return [*self._listed, *sorted(rest.difference(self._listed))]

    def used(self, path: str, arranged: Sequence[str], with_images: Collection[str]) -> tuple[str, ...]:
        """Return the names of the classes: all arranged folders, without empty ones that the list omits.

        Raises:
            SourceError: the list omits a folder with images.
        """
        if self._listed is None:
            return tuple(arranged)
        omitted = arranged[len(self._listed) :]
        if lost := [name for name in omitted if name in with_images]:
            raise SourceError(
                f"{self._order} does not list all class folders with images in {path} ({len(lost):,}: {some(lost)}): "
                "add them, one per line, in the order of their labels"
            )
        return self._listed

    def require_none(self, path: str, labels: str) -> None:
        """Raise SourceError if an order was requested although labels do not come from class folders."""
        if self._order != BY_NAME:
            raise SourceError(f"--class-order {self._order} has no effect on {path}, {labels}: omit it")

    def notes(self, path: str, class_names: Sequence[str]) -> tuple[str, ...]:
        """Return what the user should know about the labels of these class folders."""
        notes = []
        natural = sorted(class_names, key=natural_key)
        if self._order == BY_NAME and all(map(str.isdecimal, class_names)) and natural != list(class_names):
            label = next(i for i, name in enumerate(class_names) if name != natural[i])
            notes.append(
                f"the class folders of {path} are numbers and sorted as text, as in torchvision: folder "
                f"{class_names[label]} has label {label}; --class-order natural sorts them by value"
            )
        by_case: dict[str, list[str]] = defaultdict(list)
        for name in class_names:
            by_case[name.casefold()].append(name)
        if same := next((names for names in by_case.values() if len(names) > 1), None):
            notes.append(f"class folders of {path} differ only by case, and are different classes: {some(same)}")
        return tuple(notes)


def natural_key(name: str) -> tuple[list[str | int], str]:
    """Return a sorting key that compares the numbers in names by value: `a2` before `a10`."""
    parts = _NUMBER.split(name)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name


def some(names: Sequence[str]) -> str:
    """Return the first names, for a message."""
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def _read_list(file: str) -> tuple[str, ...]:
    try:
        lines = Path(file).expanduser().read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise SourceError(
            f"--class-order {file} cannot be read ({reason}): expected {BY_NAME}, {NATURAL}, or a text file with one "
            "class folder per line"
        ) from None
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise SourceError(f"{file} is empty: expected one class folder per line")
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise SourceError(f"{file} lists {some(repeated)} more than once: remove the repeated lines")
    return tuple(names)
