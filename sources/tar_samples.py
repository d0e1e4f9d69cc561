"""WebDataset's reading of a tar archive: consecutive members with one key are the parts of one sample."""

import functools
import json
import re
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import NamedTuple

from ..errors import SourceError
from .index import Record
from .names import LEFT_OUT, RULE, TOOLS, ListingRule, is_of_tools, rule_of
from .options import SourceOptions
from .skipped import SkipCounter
from .tar_headers import Member, TarHeaders

PART = "part of a WebDataset sample, not its image"
METADATA = "metadata of WebDataset"
NO_KEY = "no key for WebDataset"

_KEY = re.compile(r"((?:.*/)?[^.]+)\.([^/]*)", re.DOTALL)  # the first dot that follows a character of the file name
_METADATA = re.compile(r"__[^/]*__(?:/|$)")
_MAX_LABEL_BYTES = 1 << 20
_CLASS_NUMBER = re.compile("[0-9]{1,18}")
_LABELS = ("cls", "json")


class Part(NamedTuple):
    """One member of a sample."""

    key: str
    extension: str  # lower case, without the first dot
    member: Member


def grouped(members: Iterable[Member], rule: ListingRule, skipped: SkipCounter) -> Iterator[list[Part]]:
    """Yield the parts of each sample, as WebDataset's reader groups them."""
    parts = _parts(members, skipped) if rule is RULE else map(_part_of_0_1_0, members)
    for _, group in groupby(parts, key=lambda part: part.key):
        yield list(group)


def _parts(members: Iterable[Member], skipped: SkipCounter) -> Iterator[Part]:
    """Yield the members that WebDataset reads. Those without a key do not end a sample."""
    for member in members:
        name = member.name
        match = _KEY.fullmatch(name)
        if is_of_tools(name):
            skipped.add(TOOLS, name)
        elif name.startswith("__") and _METADATA.match(name):
            skipped.add(METADATA, name)
        elif match is None:
            skipped.add(NO_KEY, name)
        else:
            yield Part(match[1], match[2].lower(), member)


def _part_of_0_1_0(member: Member) -> Part:
    folder, slash, file = member.name.rpartition("/")
    stem, _, extension = file.partition(".")
    return Part(folder + slash + stem, extension.lower(), member)


def is_image_part(part: Part, rule: ListingRule) -> bool:
    """Return whether a part is the image of its sample. Masks such as `0.seg.png` are not."""
    return part.extension in _extensions(rule)


@functools.cache
def _extensions(rule: ListingRule) -> frozenset[str]:
    return frozenset(ending.removeprefix(".") for ending in rule.endings)


def is_labeled(parts: Iterable[Part]) -> bool:
    """Return whether a sample has a part that contains its label."""
    return any(part.extension in _LABELS for part in parts)


class SampleReader:
    """Makes a record of each sample in one archive.

    Args:
        name: name of the archive, relative to the folder of the source.
        path: path of the archive, for errors.
        headers: the archive.
        options: the options of the source.
        skipped: counts the parts that are neither image nor label.
    """

    def __init__(self, name: str, path: str, headers: TarHeaders, options: SourceOptions, skipped: SkipCounter) -> None:
        self._name, self._path, self._headers = name, path, headers
        self._rule, self._unlabeled, self._skipped = rule_of(options.listing), options.unlabeled, skipped
        self._seen: dict[str, int] = {}

    def records(self, members: Iterable[Member]) -> Iterator[Record]:
        """Yield a record for each sample with an image.

        Raises:
            SourceError: a sample has two parts with one name, several images, or no label.
        """
        for group in grouped(members, self._rule, self._skipped):
            parts = self._by_extension(group)
            images = [part for part in parts.values() if is_image_part(part, self._rule)]
            if len(images) > 1:
                names = " and ".join(part.member.name for part in images)
                raise SourceError(f"{self._path} has several images in one sample, {names}: expected one")
            if images:
                yield self._record(images[0], parts)
            else:
                self._skip_sample(parts)

    def _by_extension(self, group: list[Part]) -> dict[str, Part]:
        parts: dict[str, Part] = {}
        for part in group:
            if part.extension in parts and self._rule is RULE:
                raise SourceError(
                    f"{self._path} has two members for .{part.extension} of one sample, "
                    f"{parts[part.extension].member.name} and {part.member.name}: rename one of them"
                )
            if part.extension in parts and is_image_part(part, self._rule):
                self._skipped.add(LEFT_OUT, f"{self._name}/{parts[part.extension].member.name}")
            parts[part.extension] = part
        return parts

    def _record(self, image: Part, parts: dict[str, Part]) -> Record:
        label, source = (0, None) if self._unlabeled else self._label(image.member, parts)
        for part in parts.values():
            if part is not image and part is not source:
                self._skipped.add(PART, f"{self._name}/{part.member.name}")
        key = self._unique(f"{self._name}/{image.member.name}")
        return Record(key, label, image.member.size, f"{self._name}:{image.member.offset}")

    def _unique(self, key: str) -> str:
        """Number the samples of one name: WebDataset reads all of them."""
        count = self._seen[key] = self._seen.get(key, 0) + 1
        return key if count == 1 or self._rule is not RULE else f"{key}#{count}"

    def _skip_sample(self, parts: dict[str, Part]) -> None:
        if "cls" in parts and not self._unlabeled:
            raise SourceError(
                f"{parts['cls'].member.name} in {self._path} has no image next to it: expected an image "
                "of the same name, such as .jpg"
            )
        for part in parts.values():
            name = part.member.name
            why = PART if "." in part.extension and self._rule is RULE else self._rule.why_not_image(name)
            self._skipped.add(why, f"{self._name}/{name}")

    def _label(self, image: Member, parts: dict[str, Part]) -> tuple[int, Part]:
        """Return the class number of a sample, and the part that contains it."""
        if "cls" in parts:
            content = self._text(parts["cls"].member)
            if _CLASS_NUMBER.fullmatch(content.strip()):
                return int(content), parts["cls"]
            raise self._bad_label(parts["cls"], content, "a class number")
        if "json" in parts:
            content = self._text(parts["json"].member)
            try:
                value = json.loads(content)["label"]
            except (ValueError, KeyError, TypeError, RecursionError):
                value = None
            if isinstance(value, int) and not isinstance(value, bool):
                return value, parts["json"]
            raise self._bad_label(parts["json"], content, 'a class number as "label"')
        raise SourceError(
            f"{image.name} in {self._path} has no label: expected a .cls or .json file of the same name next to it; "
            "pass --unlabeled to make all images one class"
        )

    def _bad_label(self, part: Part, content: str, expected: str) -> SourceError:
        return SourceError(
            f"{part.member.name} in {self._path} contains {content[:40]!r}: expected {expected}, or pass --unlabeled "
            "to make all images one class"
        )

    def _text(self, member: Member) -> str:
        if member.size > _MAX_LABEL_BYTES:
            raise SourceError(f"{member.name} in {self._path} has {member.size:,} bytes: too large for a label")
        return self._headers.read(member.offset, member.size).decode("utf-8", "replace")
