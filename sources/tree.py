"""Class folders, labels and order: the rules that image folders and zip archives share.

They are torchvision's `ImageFolder`'s: sorted folder names are the classes, files below them come sorted by folder,
then by name.
"""

import json
from collections.abc import Collection, Mapping, Sequence

from ..errors import SourceError

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")

LABELS_FILE = "dataset.json"
"""Labels of an archive that EDM's or REPA's `dataset_tools.py` wrote, whose folders are not classes."""

FLAT_CLASS = "images"
"""The one class of a folder that holds images directly; not the folder's name, so that it may be moved."""

_SPLITS = frozenset({"train", "val", "valid", "validation", "test"})


def is_image(name: str) -> bool:
    """Say whether a file's name is an image's."""
    return name.lower().endswith(IMAGE_EXTENSIONS)


def tree_order(key: str) -> tuple[str, str, str]:
    """Sorting key that puts `class/folder/name` in `ImageFolder`'s order."""
    folder, _, name = key.rpartition("/")
    return key.partition("/")[0], folder, name


def check_classes(path: str, class_names: Sequence[str], keys: Collection[str]) -> None:
    """Refuse class folders without images, and a level of folders that is not the classes'."""
    if not keys:
        return
    empty = sorted(set(class_names) - {key.partition("/")[0] for key in keys})
    if empty:
        raise SourceError(
            f"{len(empty)} of {len(class_names)} class folders in {path} hold no image ({_some(empty)}): expected "
            f"{', '.join(IMAGE_EXTENSIONS)}; remove these folders or fill them"
        )
    if _SPLITS.issuperset(class_names) and any(key.count("/") >= 2 for key in keys):
        raise SourceError(
            f"{path} holds splits ({_some(class_names)}), not classes: name one of them, such as "
            f"{path}/{class_names[0]}"
        )


def labels_from_json(path: str, data: bytes, keys: Sequence[str]) -> list[int] | None:
    """Read the labels of `keys` from the bytes of a LABELS_FILE; None if it is some other program's file."""
    try:
        content = json.loads(data)
    except ValueError as error:
        raise SourceError(f"{path} is not valid JSON ({error}): remove it to label by folder") from None
    if not isinstance(content, dict) or "labels" not in content:
        return None
    if content["labels"] is None:
        raise SourceError(f"{path} says that the images have no labels: remove it to label by folder")
    try:
        labels: Mapping[str, int] = dict(content["labels"])
    except (TypeError, ValueError):
        raise SourceError(f'{path}: expected "labels" to be a list of [file name, class number] pairs') from None
    missing = [key for key in keys if key not in labels]
    if missing:
        raise SourceError(f"{path} has no label for {len(missing):,} of {len(keys):,} images ({_some(missing)})")
    chosen = [labels[key] for key in keys]
    wrong = [label for label in chosen if not isinstance(label, int) or isinstance(label, bool)]
    if wrong:
        raise SourceError(f"{path} has the label {wrong[0]!r}: expected a class number")
    return chosen


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
