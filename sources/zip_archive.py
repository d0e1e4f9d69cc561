"""A zip archive of class folders, read without unpacking."""

import struct
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from ..errors import BadImageError, SourceError
from .index import Record, build_index, names_of_labels
from .options import DEFAULTS, SourceOptions
from .source import Listing, Progress, Source, read_at
from .tree import FLAT_CLASS, LABELS_FILE, check_classes, is_image, labels_from_json, tree_order

_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, length of name, of extra field (APPNOTE.TXT, 4.3.7)
_DEFLATED = zipfile.ZIP_DEFLATED
_MACOS = "__MACOSX/"  # macOS stores a metadata file here for every file, with the same extension


class ZipSource(Source):
    """`ARCHIVE.zip` or `ARCHIVE.zip/FOLDER/INSIDE`, with the rules of a folder of images.

    Keys are member names relative to the inner folder. Locators are `OFFSET:COMPRESSED SIZE:METHOD:CRC32`, with the
    offset of the member's local header, so that workers do not need the central directory.
    """

    kind = "zip"
    applied_options = frozenset({"split"})

    def __init__(self, path: str, options: SourceOptions = DEFAULTS) -> None:
        super().__init__(path, options)
        if options.split is not None:
            self.path = f"{path}/{options.split}"
        self._archive, self._inside = _split_archive(self.path)

    def list_records(self, progress: Progress | None) -> Listing:
        """Read the central directory."""
        with self._open() as archive:
            members = [m for m in archive.infolist() if m.filename.startswith(self._inside)]
            members = [m for m in members if not m.filename.startswith(_MACOS)]
            if not members and self.options.split is not None:
                raise SourceError(f"{self._archive} has no folder {self._inside} (--split {self.options.split})")
            by_key = {m.filename.removeprefix(self._inside): m for m in members}
            if len(by_key) < len(members):
                raise SourceError(f"{self.path} contains several members with the same name: pack it again")
            folders = sorted({key.partition("/")[0] for key in by_key if "/" in key})
            images = [key for key in by_key if is_image(key) and ("/" in key or not folders)]
            keys = sorted(images, key=tree_order)
            if not keys:
                raise SourceError(f"{self.path} contains no images among {len(members):,} files and folders")
            self._check_tree(folders, keys)
            labels = self._labels_from_json(archive, by_key, keys)
        by_folder = {name: label for label, name in enumerate(folders)}
        class_of = [by_folder.get(key.partition("/")[0], 0) for key in keys] if labels is None else labels
        records = (
            Record(key, label, by_key[key].file_size, self._locator(by_key[key]))
            for key, label in zip(keys, class_of, strict=True)
        )
        index = build_index(records)
        if progress is not None:
            progress(1, 1)
        if labels is not None:
            return Listing(index, names_of_labels(index))
        return Listing(index, tuple(folders) or (FLAT_CLASS,))

    def read_bytes(self, record: Record) -> bytes:
        """Read one member and verify its checksum."""
        offset, size, method, checksum = (int(number) for number in record.locator.split(":"))
        header = read_at(self._archive, offset, _LOCAL_HEADER.size)
        signature, name_length, extra_length = _LOCAL_HEADER.unpack(header)
        if signature != b"PK\3\4":
            raise SourceError(f"{self._archive} has changed since it was listed: restore it, or create a new store")
        data = read_at(self._archive, offset + _LOCAL_HEADER.size + name_length + extra_length, size)
        if method == _DEFLATED:
            data = _inflate(data, record.num_bytes)
        if zlib.crc32(data) != checksum:
            raise BadImageError("damaged in its zip archive (the checksum differs)")
        return data

    def _open(self) -> zipfile.ZipFile:
        try:
            return zipfile.ZipFile(self._archive)
        except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
            raise SourceError(f"{self._archive} is not a readable zip archive ({error})") from None

    def _check_tree(self, folders: list[str], keys: list[str]) -> None:
        check_classes(self.path, folders, keys)
        if len(folders) == 1 and all(key.count("/") >= 2 for key in keys):
            raise SourceError(
                f"all class folders in {self.path} are inside its folder {folders[0]}: specify {self.path}/{folders[0]}"
            )

    def _labels_from_json(
        self, archive: zipfile.ZipFile, by_key: dict[str, zipfile.ZipInfo], keys: list[str]
    ) -> list[int] | None:
        if LABELS_FILE not in by_key:
            return None
        try:
            data = archive.read(by_key[LABELS_FILE])
        except (zipfile.BadZipFile, zlib.error, RuntimeError) as error:
            raise SourceError(f"{LABELS_FILE} in {self._archive} cannot be read ({error})") from None
        return labels_from_json(f"{self.path}/{LABELS_FILE}", data, keys)

    def _locator(self, member: zipfile.ZipInfo) -> str:
        if member.flag_bits & 1:
            raise SourceError(f"{member.filename} in {self._archive} is encrypted: unpack the archive")
        if member.compress_type not in (zipfile.ZIP_STORED, _DEFLATED):
            raise SourceError(
                f"{member.filename} in {self._archive} uses compression method {member.compress_type}: expected 0 "
                "(stored) or 8 (deflated); pack it again"
            )
        return f"{member.header_offset}:{member.compress_size}:{member.compress_type}:{member.CRC}"


def _split_archive(path: str) -> tuple[str, str]:
    """Split `a.zip/train` into the path of the archive and the prefix `train/` of its members.

    Raises:
        SourceError: there is no archive.
    """
    archive = Path(path)
    while not archive.exists() and archive != archive.parent:
        archive = archive.parent
    if not archive.is_file():
        found = "is a folder" if Path(path).is_dir() else "does not exist"
        raise SourceError(f"{path} {found}: expected a zip archive, or a folder inside one")
    inside = PurePosixPath(path).relative_to(archive).as_posix()
    return str(archive), "" if inside == "." else f"{inside}/"


def _inflate(data: bytes, size: int) -> bytes:
    """Inflate a member, to at most the size stated in its archive plus one byte."""
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size + 1)
    except zlib.error as error:
        raise BadImageError(f"damaged in its zip archive ({error})") from None
