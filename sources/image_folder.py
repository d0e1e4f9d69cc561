"""A folder of images: one folder per class, as in torchvision's `ImageFolder`, or a flat folder."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..errors import SourceError
from .class_order import ClassOrder, some
from .folder_scan import LISTING_THREADS, Files, add_entries, files_below, scan
from .index import Record, index_of_files, names_of_labels
from .names import RULE, ListingRule, rule_of
from .options import DEFAULTS, SourceOptions
from .skipped import SkipCounter, describe_skipped
from .source import Listing, Progress, Source
from .tree import (
    CHOOSE_SPLIT,
    FLAT_CLASS,
    LABELS_FILE,
    OUTSIDE,
    check_classes,
    labels_from_json,
    left_out_notes,
    require_no_splits,
)


@dataclass(frozen=True, slots=True)
class _Found:
    """The files of a folder: one part per class folder, or parts of the only class."""

    classes: list[str]
    parts: list[Files]
    skipped: SkipCounter


class FolderSource(Source):
    """A folder `PATH/CLASS/…/IMAGE`.

    Keys are paths relative to PATH. Labels are the positions of the class folders in sorted order, or in the order of
    `SourceOptions.class_order`. Order and classes are those of `torchvision.datasets.ImageFolder`, but hidden files and
    folders are skipped; links are followed. A folder that contains images but no folders is a single class. If there is
    a `dataset.json` as written by REPA's tools, it provides the labels instead.
    """

    kind = "folder"
    applied_options = frozenset({"split", "unlabeled", "class_order"})

    def __init__(self, path: str, options: SourceOptions = DEFAULTS) -> None:
        super().__init__(path, options)
        if not Path(path).is_dir():
            found = "is a file" if Path(path).exists() else "does not exist"
            raise SourceError(f"{path} {found}: expected a folder with one folder of images per class")
        if options.split is not None:
            self.path = _folder_of_split(path, options.split)

    def list_records(self, progress: Progress | None) -> Listing:
        """List the images of each class in a thread pool."""
        rule, order = rule_of(self.options.listing), ClassOrder(self.options)
        found = self._find(rule, order, progress)
        keys = [key for part in found.parts for key, _ in part.images]
        if not keys:
            raise SourceError(f"{self.path} contains no images: {_explain_no_images(found.skipped)}")
        names, labels = self._label(found, order, keys)
        sizes = [size for part in found.parts for _, size in part.images]
        index = index_of_files(keys, labels, sizes)
        notes = (*order.notes(self.path, names), *left_out_notes(rule, self.path, names, found.skipped))
        return Listing(index, names or names_of_labels(index), found.skipped.result(), notes)

    def read_bytes(self, record: Record) -> bytes:
        """Read one file."""
        try:
            with open(f"{self.path}/{record.locator}", "rb") as file:  # noqa: PTH123 - Path is 5% slower here
                return file.read()
        except OSError as error:
            raise SourceError(f"{self.path}/{record.locator} cannot be read: {error.strerror}") from None

    def _find(self, rule: ListingRule, order: ClassOrder, progress: Progress | None) -> _Found:
        top = Files()
        entries = [entry for entry in scan(self.path) if entry.name != LABELS_FILE]
        folders = add_entries(top, entries, rule, "")
        has_classes = bool(folders) and not self.options.unlabeled
        arranged = order.arrange(self.path, folders) if has_classes else folders
        below = self._list_folders(arranged, rule, progress)
        for part in below:
            top.skipped.merge(part.skipped)
        for key, _ in top.images if has_classes else ():
            top.skipped.add(OUTSIDE, key)
        return _Found(arranged if has_classes else [], below if has_classes else [top, *below], top.skipped)

    def _list_folders(self, folders: list[str], rule: ListingRule, progress: Progress | None) -> list[Files]:
        found: list[Files] = []
        with ThreadPoolExecutor(LISTING_THREADS) as pool:
            for files in pool.map(partial(files_below, self.path, rule), folders):
                found.append(files)
                if progress is not None:
                    progress(len(found), len(folders))
        return found

    def _label(self, found: _Found, order: ClassOrder, keys: list[str]) -> tuple[tuple[str, ...], list[int]]:
        """Return class names and labels; no names if the labels come from a file."""
        with_images = {name for name, part in zip(found.classes, found.parts, strict=False) if part.images}
        names = check_classes(self.path, order, found.classes, with_images) if found.classes else (FLAT_CLASS,)
        require_no_splits(self.path, names, keys, self.options, CHOOSE_SPLIT)
        labels = self._labels_from_json(keys, found.skipped)
        if labels is not None:
            order.require_none(self.path, f"whose labels are in {LABELS_FILE}")
            return (), labels
        if not found.classes:
            return names, [0] * len(keys)
        return names, [label for label, part in enumerate(found.parts) for _ in part.images]

    def _labels_from_json(self, keys: list[str], skipped: SkipCounter) -> list[int] | None:
        file = Path(self.path, LABELS_FILE)
        if not file.is_file():
            return None
        labels = None if self.options.unlabeled else labels_from_json(str(file), file.read_bytes(), keys)
        if labels is None:
            skipped.add(rule_of(self.options.listing).why_not_image(LABELS_FILE), LABELS_FILE)
        return labels


def _folder_of_split(path: str, split: str) -> str:
    folders = [entry.name for entry in scan(path) if entry.is_dir() and not RULE.why_hidden(entry.name)]
    if split not in folders:
        raise SourceError(f"{path} has no split {split}: expected one of its folders ({some(folders)})")
    return f"{path}/{split}"


def _explain_no_images(skipped: SkipCounter) -> str:
    found = skipped.result()
    return f"found {describe_skipped(found)}" if found else "it is empty; expected one folder of images per class"
