"""Class folders, labels and order: the rules that image folders and zip archives share.

The rules are those of torchvision's `ImageFolder`: classes are the sorted folder names, and the files below them are
sorted by folder, then by name.
"""

import json
from collections.abc import Collection, Mapping, Sequence

from ..errors import SourceError

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")

LABELS_FILE = "dataset.json"
"""Labels of a dataset written by EDM's or REPA's `dataset_tools.py`, in which folders are not classes."""

FLAT_CLASS = "images"
"""The only class of a folder that contains images directly. Not the name of the folder, so that it can be moved."""

_SPLITS = frozenset({"train", "val", "valid", "validation", "test"})


def is_image(name: str) -> bool:
    """Return whether a file name has the extension of an image."""
    return name.lower().endswith(IMAGE_EXTENSIONS)


def tree_order(key: str) -> tuple[str, str, str]:
    """Return a sorting key that puts keys `class/folder/name` in the order of `ImageFolder`."""
    folder, _, name = key.rpartition("/")
    return key.partition("/")[0], folder, name


def check_classes(path: str, class_names: Sequence[str], keys: Collection[str]) -> None:
    """Raise SourceError for class folders without images, and for folders of splits instead of classes."""
    if not keys:
        return
    empty = sorted(set(class_names) - {key.partition("/")[0] for key in keys})
    if empty:
        raise SourceError(
            f"{len(empty)} of {len(class_names)} class folders in {path} contain no images ({some(empty)}): expected "
            f"{', '.join(IMAGE_EXTENSIONS)}; remove or fill these folders"
        )
    if _SPLITS.issuperset(class_names) and any(key.count("/") >= 2 for key in keys):
        raise SourceError(
            f"{path} contains splits ({some(class_names)}), not classes: read one with --split "
            f"{class_names[0]}, or specify {path}/{class_names[0]}"
        )


def labels_from_json(path: str, data: bytes, keys: Sequence[str]) -> list[int] | None:
    """Read the labels of `keys` from the contents of a LABELS_FILE. None if another program wrote the file.

    Args:
        path: path of the file, for errors.
        data: contents of the file.
        keys: keys of all images.

    Raises:
        SourceError: the file is damaged, or lacks a label.
    """
    try:
        content = json.loads(data)
    except ValueError as error:
        raise SourceError(f"{path} is not valid JSON ({error}): remove it to use class folders as labels") from None
    if not isinstance(content, dict) or "labels" not in content:
        return None
    if content["labels"] is None:
        raise SourceError(f'{path} has no labels ("labels" is null): remove it to use class folders as labels')
    try:
        labels: Mapping[str, int] = dict(content["labels"])
    except (TypeError, ValueError):
        raise SourceError(f'{path}: expected "labels" to be a list of [file name, class number] pairs') from None
    missing = [key for key in keys if key not in labels]
    if missing:
        raise SourceError(f"{path} has no label for {len(missing):,} of {len(keys):,} images ({some(missing)})")
    chosen = [labels[key] for key in keys]
    wrong = [label for label in chosen if not isinstance(label, int) or isinstance(label, bool)]
    if wrong:
        raise SourceError(f"{path} has the label {wrong[0]!r}: expected a class number")
    return chosen


def some(names: Sequence[str]) -> str:
    """Return the first names of a list, for errors."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
