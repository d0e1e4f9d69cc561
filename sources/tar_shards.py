"""Tar archives: samples in WebDataset format, class folders, or one archive per class."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from ..errors import SourceError
from .archive_paths import normal_name, split_archive
from .class_order import ClassOrder
from .files import find_files
from .index import Record, build_index, names_of_labels
from .names import RULE, ListingRule, rule_of
from .options import DEFAULTS, SourceOptions
from .skipped import SkipCounter, describe_skipped
from .source import Listing, Progress, Source, read_at
from .tar_headers import TarHeaders
from .tar_members import files_of
from .tar_samples import Part, SampleReader, grouped, is_image_part, is_labeled
from .tree import FLAT_CLASS, arrange_tree, left_out_notes, require_classes_on_top, require_no_splits, top_of

_LISTING_THREADS = 16


class _Part(NamedTuple):
    """The records of one tar file. In a tree, labels are not known yet, and keys are paths in the archive."""

    records: list[Record]
    skipped: SkipCounter


class TarSource(Source):
    """An uncompressed tar file, a folder of them, a glob, or `FILE.tar/FOLDER/INSIDE`.

    As in WebDataset, consecutive members whose names agree up to the first dot of the file name form one sample: an
    image, and its class number as the text of a `.cls` file or as `"label"` in a `.json` file. Samples are ordered by
    the sorted tar files, then by their position in each file. Keys are `TAR/MEMBER`.

    If the first image has no label next to it, the archives are read as folders of class folders, with their rules;
    keys are then the paths of the members. Archives inside an archive are folders. Locators are always `TAR:OFFSET`.
    """

    kind = "tar"
    applied_options = frozenset({"split", "unlabeled", "class_order"})

    def __init__(self, path: str, options: SourceOptions = DEFAULTS) -> None:
        super().__init__(path, options)
        self._archive, self._inside = path, ""
        if any(parent.is_file() for parent in Path(path).parents):
            self._archive, self._inside = split_archive(path, "tar")
        self._folder = find_files(self._archive, ".tar", options.split).folder

    def list_records(self, progress: Progress | None) -> Listing:
        """Read the headers and labels of every tar file in a thread pool."""
        rule, skipped = rule_of(self.options.listing), SkipCounter()
        found = find_files(self._archive, ".tar", self.options.split)
        for each in found.skipped:
            skipped.add(each.reason, each.example, each.count)
        files = found.names
        is_tree = rule is RULE and self._is_tree(files, rule)
        records: list[Record] = []
        with ThreadPoolExecutor(_LISTING_THREADS) as pool:
            list_file: Callable[[str, ListingRule], _Part] = self._list_tree if is_tree else self._list_samples
            for done, part in enumerate(pool.map(list_file, files, [rule] * len(files)), 1):
                records += part.records
                skipped.merge(part.skipped)
                if progress is not None:
                    progress(done, len(files))
        if not records:
            raise SourceError(_explain_no_images(self.path, skipped))
        return self._tree_listing(records, skipped) if is_tree else self._sample_listing(records, rule, skipped)

    def read_bytes(self, record: Record) -> bytes:
        """Read one member with a single system call."""
        name, _, offset = record.locator.rpartition(":")
        return read_at(f"{self._folder}/{name}", int(offset), record.num_bytes)

    def _is_tree(self, files: Sequence[str], rule: ListingRule) -> bool:
        """Return whether the first image of the source has no label next to it, and no other part if unlabeled."""
        for name in files:
            with self._open(name) as headers:
                for parts in grouped(files_of(headers, rule, self._inside), rule, SkipCounter()):
                    if any(rule.is_image(part.member.name) for part in parts):
                        return not (self._ignores_parts(parts, rule) or is_labeled(parts))
        return False

    def _ignores_parts(self, parts: list[Part], rule: ListingRule) -> bool:
        """Return whether a sample is one image with other parts, and labels are ignored."""
        return self.options.unlabeled and len(parts) > 1 and sum(is_image_part(part, rule) for part in parts) == 1

    @contextmanager
    def _open(self, name: str) -> Iterator[TarHeaders]:
        path = f"{self._folder}/{name}"
        try:
            with Path(path).open("rb", buffering=0) as file:
                yield TarHeaders(path, file)
        except OSError as error:
            raise SourceError(f"{path} cannot be read: {error.strerror}") from None

    def _list_samples(self, name: str, rule: ListingRule) -> _Part:
        skipped = SkipCounter()
        with self._open(name) as headers:
            path = f"{self._folder}/{name}"
            reader = SampleReader(name, path, headers, self.options, skipped)
            return _Part(list(reader.records(files_of(headers, rule, self._inside))), skipped)

    def _list_tree(self, name: str, rule: ListingRule) -> _Part:
        skipped, records = SkipCounter(), []
        with self._open(name) as headers:
            for member in files_of(headers, rule, self._inside):
                key = normal_name(member.name)
                if why := rule.why_path_hidden(key):
                    skipped.add(why, f"{name}/{key}")
                elif rule.is_image(key):
                    records.append(Record(key, 0, member.size, f"{name}:{member.offset}"))
                elif key.endswith(".cls") and not self.options.unlabeled:
                    raise SourceError(
                        f"{self._folder}/{name} contains the label {key}, but the first image of {self.path} has no "
                        "label next to it: add the missing labels, or pass --unlabeled to make all images one class"
                    )
                else:
                    skipped.add(rule.why_not_image(key), f"{name}/{key}")
        return _Part(records, skipped)

    def _sample_listing(self, records: list[Record], rule: ListingRule, skipped: SkipCounter) -> Listing:
        ClassOrder(self.options).require_none(self.path, "whose labels are numbers")
        index = build_index(records)
        names = (FLAT_CLASS,) if self.options.unlabeled else names_of_labels(index)
        return Listing(index, names, skipped.result(), left_out_notes(rule, self.path, (), skipped))

    def _tree_listing(self, records: list[Record], skipped: SkipCounter) -> Listing:
        members = {record.key: record for record in records}
        if len(members) < len(records):
            twice, _ = Counter(record.key for record in records).most_common(1)[0]
            raise SourceError(f"{self.path} contains several members with the same name ({twice}): pack it again")
        folders = {top_of(key) for key in members} - {""}
        if not folders and not self.options.unlabeled:
            raise SourceError(_explain_no_labels(self.path, records[0].key))
        tree = arrange_tree(self.path, members, folders, self.options, skipped)
        is_file = Path(self._archive).is_file()
        remedy = "specify {1}" if is_file else _PACK_AGAIN
        require_no_splits(self.path, tree.class_names, tree.keys, self.options, remedy)
        if not self.options.unlabeled:
            require_classes_on_top(self.path, folders, tree.keys, "specify {}" if is_file else _PACK_AGAIN)
        found = [members[key] for key in tree.keys]
        index = build_index(
            Record(key, label, record.num_bytes, record.locator)
            for key, label, record in zip(tree.keys, tree.labels, found, strict=True)
        )
        return Listing(index, tree.class_names, skipped.result(), tree.notes)


_PACK_AGAIN = "pack the archives again without the folder on top (tar -C FOLDER)"


def _explain_no_images(path: str, skipped: SkipCounter) -> str:
    return (
        f"{path} contains no images (found {describe_skipped(skipped.result())}): expected members such as 000017.jpg "
        "and 000017.cls, or n01440764/1.JPEG"
    )


def _explain_no_labels(path: str, key: str) -> str:
    return (
        f"{key} in {path} has no label: expected a .cls or .json file of the same name next to it, or class folders; "
        "if every archive is a class, pack them into one (tar -cf classes.tar *.tar); pass --unlabeled to make all "
        "images one class"
    )
