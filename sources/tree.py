"""Class folders and their labels: the rules that image folders and archives of folders share.

The rules are those of torchvision's `ImageFolder`: classes are the folder names, and the files below them are sorted by
folder, then by name.
"""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..errors import SourceError
from .class_order import ClassOrder, some
from .names import LEFT_OUT, RULE, ListingRule
from .options import SourceOptions
from .skipped import SkipCounter

LABELS_FILE = "dataset.json"
"""Labels of a dataset written by EDM's or REPA's `dataset_tools.py`, in which folders are not classes."""

FLAT_CLASS = "images"
"""The only class of a folder that contains images directly, and of unlabeled sources. Not the name of the folder, so
that it can be moved."""

OUTSIDE = "next to class folders"

CHOOSE_SPLIT = "read one with --split {0}, or specify {1}"

_SPLITS = frozenset({"train", "val", "valid", "validation", "test"})


def top_of(key: str) -> str:
    """Return the top folder of a key, or an empty string."""
    top, slash, _ = key.partition("/")
    return top if slash else ""


@dataclass(frozen=True, slots=True)
class Tree:
    """The images of a tree of files, with their labels.

    Attributes:
        keys: the images, in the order of their labels, folders and names.
        labels: label of each.
        class_names: name of label i.
        notes: what the user should know about the labels.
    """

    keys: list[str]
    labels: list[int]
    class_names: tuple[str, ...]
    notes: tuple[str, ...] = ()


def arrange_tree(
    path: str, images: Collection[str], folders: Collection[str], options: SourceOptions, counter: SkipCounter
) -> Tree:
    """Label and sort the images of an archive by their top folders.

    Args:
        path: the source, for errors.
        images: paths of all images in the archive.
        folders: all top folders.
        options: the options of the source.
        counter: counts images that are not in a class folder although there are some.

    Raises:
        SourceError: a folder contains no images, or the class list does not match.
    """
    order = ClassOrder(options)
    arranged = [] if options.unlabeled else order.arrange(path, folders)
    if not arranged:
        return Tree(sorted(images, key=_by_folder), [0] * len(images), (FLAT_CLASS,))
    rank = {name: label for label, name in enumerate(arranged)}
    inside = sorted((rank[top], *key.rpartition("/")) for key in images if (top := top_of(key)))
    for key in images if len(inside) < len(images) else ():
        if not top_of(key):
            counter.add(OUTSIDE, key)
    keys = [f"{folder}/{name}" for _, folder, _, name in inside]
    names = check_classes(path, order, arranged, {top_of(key) for key in keys})
    return Tree(keys, [label for label, *_ in inside], names, order.notes(path, names))


def _by_folder(key: str) -> tuple[str, str, str]:
    folder, _, name = key.rpartition("/")
    return top_of(key), folder, name


def check_classes(path: str, order: ClassOrder, arranged: Sequence[str], with_images: set[str]) -> tuple[str, ...]:
    """Return the class names of the arranged folders, of which some have images.

    Raises:
        SourceError: a class folder contains no images, or the class list does not match the folders.
    """
    if not with_images:
        return tuple(arranged)
    names = order.used(path, arranged, with_images)
    if empty := sorted(set(names) - with_images):
        raise SourceError(
            f"{len(empty):,} of {len(names):,} class folders in {path} contain no images ({some(empty)}): restore "
            "their images or remove these folders, or pass --class-order FILE with a list of class folders without them"
        )
    return names


def require_no_splits(
    path: str, class_names: Sequence[str], keys: Collection[str], options: SourceOptions, remedy: str
) -> None:
    """Raise SourceError if the top folders are splits: they would become classes or, unlabeled, one set.

    Args:
        path: the source.
        class_names: name of label i.
        keys: all images.
        options: the options of the source.
        remedy: what to do; it may name a split as `{0}` and its path as `{1}`.
    """
    names = sorted({top_of(key) for key in keys}) if options.unlabeled else class_names
    several = len(names) > 1 and options.listing > 1  # version 0.1.0 took splits without class folders for classes
    if not _SPLITS.issuperset(names):
        return
    if several or (not options.unlabeled and any(key.count("/") >= 2 for key in keys)):
        raise SourceError(
            f"{path} contains splits ({some(names)}), not classes: {remedy.format(names[0], f'{path}/{names[0]}')}"
        )


def require_classes_on_top(path: str, folders: Collection[str], keys: Iterable[str], remedy: str) -> None:
    """Raise SourceError if a single folder contains folders only, as archives of a folder of class folders do."""
    if len(folders) == 1 and all(key.count("/") >= 2 for key in keys):
        (folder,) = folders
        raise SourceError(
            f"all class folders in {path} are inside its folder {folder}: {remedy.format(f'{path}/{folder}')}, or pass "
            "--unlabeled to make all images one class"
        )


def left_out_notes(rule: ListingRule, path: str, class_names: Iterable[str], counter: SkipCounter) -> tuple[str, ...]:
    """Return how the listing of a store made by an earlier version differs from that of a new store."""
    notes = []
    left_out = counter.of(LEFT_OUT)
    if left_out:
        notes.append(
            f"{path} contains images that this store, created by an earlier version, leaves out "
            f"({left_out.count:,}, such as {left_out.example}): create a new store to include them"
        )
    if rule is not RULE and (tools := [name for name in class_names if RULE.why_hidden(name)]):
        notes.append(
            f"classes of this store, created by an earlier version, are hidden folders of {path} or folders of other "
            f"programs ({some(tools)}): create a new store to leave them out"
        )
    return tuple(notes)


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
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{path} is not valid JSON ({error}): remove it to use class folders as labels") from None
    if not isinstance(content, dict) or "labels" not in content:
        return None
    if content["labels"] is None:
        raise SourceError(
            f'{path} has no labels ("labels" is null): remove it to use class folders as labels, or pass --unlabeled '
            "to make all images one class"
        )
    try:
        labels: Mapping[str, int] = dict(content["labels"])
    except (TypeError, ValueError):
        raise SourceError(f'{path}: expected "labels" to be a list of [file name, class number] pairs') from None
    missing = [key for key in keys if key not in labels]
    if missing:
        raise SourceError(
            f"{path} has no label for {len(missing):,} of {len(keys):,} images ({some(missing)}): add them, or pass "
            "--unlabeled to make all images one class"
        )
    chosen = [labels[key] for key in keys]
    wrong = [label for label in chosen if not isinstance(label, int) or isinstance(label, bool)]
    if wrong:
        raise SourceError(f"{path} has the label {wrong[0]!r}: expected a class number")
    return chosen
