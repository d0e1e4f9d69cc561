"""A zip archive of class folders, read without unpacking."""

import struct
import zipfile
import zlib
from collections.abc import Collection

from ..errors import BadImageError, SourceError
from .archive_paths import split_archive
from .class_order import ClassOrder
from .index import Record, build_index, names_of_labels
from .names import RULE, ListingRule, rule_of
from .options import DEFAULTS, SourceOptions
from .skipped import SkipCounter, describe_skipped
from .source import Listing, Progress, Source, read_at
from .tree import (
    CHOOSE_SPLIT,
    LABELS_FILE,
    Tree,
    arrange_tree,
    labels_from_json,
    left_out_notes,
    require_classes_on_top,
    require_no_splits,
    top_of,
)
from .zip_members import DEFLATED, members_by_name, open_archive, read_member, require_readable

_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, length of name, of extra field (APPNOTE.TXT, 4.3.7)
_MACOS = "__MACOSX/"  # the only files that version 0.1.0 skipped


class ZipSource(Source):
    """`ARCHIVE.zip` or `ARCHIVE.zip/FOLDER/INSIDE`, with the rules of a folder of images.

    Keys are member names relative to the inner folder. Locators are `OFFSET:COMPRESSED SIZE:METHOD:CRC32`, with the
    offset of the member's local header, so that workers do not need the central directory.
    """

    kind = "zip"
    applied_options = frozenset({"split", "unlabeled", "class_order"})

    def __init__(self, path: str, options: SourceOptions = DEFAULTS) -> None:
        super().__init__(path, options)
        if options.split is not None:
            self.path = f"{path}/{options.split}"
        self._archive, self._inside = split_archive(self.path, "zip")

    def list_records(self, progress: Progress | None) -> Listing:
        """Read the central directory."""
        rule, skipped = rule_of(self.options.listing), SkipCounter()
        with open_archive(self._archive) as archive:
            members = self._members(archive, rule, skipped)
            tree = self._arrange(members, rule, skipped)
            labels = self._labels_from_json(archive, members, tree.keys)
        if labels is None and LABELS_FILE in members:
            skipped.add(rule.why_not_image(LABELS_FILE), LABELS_FILE)
        found = [members[key] for key in tree.keys]
        locators = [self._locator(member) for member in found]
        sizes = [member.file_size for member in found]
        index = build_index(map(Record, tree.keys, tree.labels if labels is None else labels, sizes, locators))
        if progress is not None:
            progress(1, 1)
        names = tree.class_names if labels is None else names_of_labels(index)
        notes = (*tree.notes, *left_out_notes(rule, self.path, tree.class_names, skipped))
        return Listing(index, names, skipped.result(), notes)

    def read_bytes(self, record: Record) -> bytes:
        """Read one member and verify its checksum."""
        offset, size, method, checksum = (int(number) for number in record.locator.split(":"))
        header = read_at(self._archive, offset, _LOCAL_HEADER.size)
        signature, name_length, extra_length = _LOCAL_HEADER.unpack(header)
        if signature != b"PK\3\4":
            raise SourceError(f"{self._archive} has changed since it was listed: restore it, or create a new store")
        data = read_at(self._archive, offset + _LOCAL_HEADER.size + name_length + extra_length, size)
        if method == DEFLATED:
            data = _inflate(data, record.num_bytes)
        if zlib.crc32(data) != checksum:
            raise BadImageError("damaged in its zip archive (the checksum differs)")
        return data

    def _members(self, archive: zipfile.ZipFile, rule: ListingRule, skipped: SkipCounter) -> dict[str, zipfile.ZipInfo]:
        """Return the members by their keys, without hidden ones."""
        members = [m for m in archive.infolist() if rule is RULE or not m.filename.startswith(_MACOS)]
        found = members_by_name(self.path, members, self._inside, rule is RULE)
        if not found and self.options.split is not None:
            raise SourceError(f"{self._archive} has no folder {self._inside} (--split {self.options.split})")
        shown = {}
        for key, member in found.items():
            why = rule.why_path_hidden(key)
            if why is None:
                shown[key] = member
            elif not key.endswith("/"):
                skipped.add(why, key)
        return shown

    def _arrange(self, members: Collection[str], rule: ListingRule, skipped: SkipCounter) -> Tree:
        images = []
        for key in members:
            if rule.is_image(key):
                images.append(key)
            elif not key.endswith("/") and key != LABELS_FILE:
                skipped.add(rule.why_not_image(key), key)
        folders = {top_of(key) for key in members} - {""}
        tree = arrange_tree(self.path, images, folders, self.options, skipped)
        if not tree.keys:
            raise SourceError(f"{self.path} contains no images: found {describe_skipped(skipped.result())}")
        require_no_splits(self.path, tree.class_names, tree.keys, self.options, CHOOSE_SPLIT)
        if not self.options.unlabeled:
            require_classes_on_top(self.path, folders, tree.keys, "specify {}")
        return tree

    def _labels_from_json(
        self, archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], keys: list[str]
    ) -> list[int] | None:
        if LABELS_FILE not in members or self.options.unlabeled:
            return None
        data = read_member(self._archive, archive, members[LABELS_FILE])
        labels = labels_from_json(f"{self.path}/{LABELS_FILE}", data, keys)
        if labels is not None:
            ClassOrder(self.options).require_none(self.path, f"whose labels are in {LABELS_FILE}")
        return labels

    def _locator(self, member: zipfile.ZipInfo) -> str:
        require_readable(self._archive, member)
        return f"{member.header_offset}:{member.compress_size}:{member.compress_type}:{member.CRC}"


def _inflate(data: bytes, size: int) -> bytes:
    """Inflate a member, to at most the size stated in its archive plus one byte."""
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size + 1)
    except zlib.error as error:
        raise BadImageError(f"damaged in its zip archive ({error})") from None
