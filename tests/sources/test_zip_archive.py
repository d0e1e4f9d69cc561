import pickle
import struct
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from repa_pipe.errors import BadImageError, SourceError
from repa_pipe.sources import index_digest, open_source, records_of


def pack(tree: Path, file: Path, inside: str = "", method: int = zipfile.ZIP_STORED) -> Path:
    """Pack a tree in another order than that of its names; with `inside`, folders become members too."""
    with zipfile.ZipFile(file, "w", method) as archive:
        for path in sorted(tree.rglob("*"), key=lambda path: path.name, reverse=True):
            if not path.is_dir():
                archive.write(path, inside + str(path.relative_to(tree)))
            elif inside:
                archive.mkdir(inside + str(path.relative_to(tree)))
    return file


@pytest.fixture
def plain_tree(tree):
    """The tree without links to folders, which archivers do not follow."""
    (tree / "n10" / "folder").unlink()
    (tree / "n30").unlink()
    return tree


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_archive_has_the_same_digest_as_the_folder_it_was_packed_from(plain_tree, tmp_path, method):
    packed = open_source(str(pack(plain_tree, tmp_path / "train.zip", method=method)))
    folder = open_source(str(plain_tree))
    assert index_digest(packed.index()) == index_digest(folder.index())
    assert packed.class_names == folder.class_names
    for record in records_of(packed.index()):
        assert packed.read(record) == (plain_tree / record.key).read_bytes()


def test_a_folder_inside_the_archive_can_be_specified(plain_tree, tmp_path):
    pack(plain_tree, tmp_path / "kaggle.zip", "ILSVRC/Data/train/")
    source = open_source(str(tmp_path / "kaggle.zip" / "ILSVRC" / "Data" / "train"))
    assert source.kind == "zip"
    assert index_digest(source.index()) == index_digest(open_source(str(plain_tree)).index())
    record = next(records_of(source.index()))
    assert source.read(record) == (plain_tree / record.key).read_bytes()


def test_a_folder_around_the_classes_must_be_specified(plain_tree, tmp_path):
    (plain_tree / "on top.png").unlink()
    file = pack(plain_tree, tmp_path / "packed.zip", "imagenet/")
    with pytest.raises(SourceError, match=rf"are inside its folder imagenet: specify {file}/imagenet"):
        open_source(str(file)).index()
    with pytest.raises(SourceError, match="contains splits"):
        open_source(str(pack(plain_tree, tmp_path / "split.zip", "train/"))).index()


def test_a_flat_archive_is_one_class_without_the_metadata_files_of_macos(tmp_path, encode):
    with zipfile.ZipFile(tmp_path / "flat.zip", "w") as archive:
        for name in ["b.png", "__MACOSX/._b.png", "a.jpg"]:
            archive.writestr(name, encode())
    source = open_source(str(tmp_path / "flat.zip"))
    assert source.index()["key"].to_pylist() == ["a.jpg", "b.png"]
    assert source.class_names == ("images",)


def test_labels_of_repas_archives_come_from_dataset_json(tmp_path, encode):
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        archive.writestr("00000/img00000001.png", encode(1))
        archive.writestr("00000/img00000000.png", encode(0))
        archive.writestr("dataset.json", '{"labels": [["00000/img00000000.png", 3], ["00000/img00000001.png", 1]]}')
    source = open_source(str(tmp_path / "images.zip"))
    assert source.index()["label"].to_pylist() == [3, 1]
    assert source.class_names == ("0", "1", "2", "3")


def test_pickled_copies_in_sixteen_threads_read_the_same_bytes(plain_tree, tmp_path):
    source = open_source(str(pack(plain_tree, tmp_path / "a.zip", method=zipfile.ZIP_DEFLATED)))
    records = list(records_of(source.index())) * 20
    worker = pickle.loads(pickle.dumps(source))
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(worker.read, records)) == [(plain_tree / record.key).read_bytes() for record in records]


def test_the_extra_field_of_a_local_header_is_skipped(tmp_path, encode):
    data, name, extra = encode(), b"a.png", bytes(40)
    # As with many archivers, the central directory does not mention the extra field.
    local = struct.pack("<4sHHHHHIIIHH", b"PK\3\4", 20, 0, 0, 0, 33, crc(data), len(data), len(data), 5, 40)
    central = struct.pack(
        "<4sHHHHHHIIIHHHHHII", b"PK\1\2", 20, 20, 0, 0, 0, 33, crc(data), len(data), len(data), 5, 0, 0, 0, 0, 0, 0
    )
    body = local + name + extra + data
    end = struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, 1, 1, len(central) + 5, len(body), 0)
    (tmp_path / "a.zip").write_bytes(body + central + name + end)
    source = open_source(str(tmp_path / "a.zip"))
    assert source.read(next(records_of(source.index()))) == data


def crc(data: bytes) -> int:
    return zipfile.crc32(data)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_damaged_member_is_a_bad_image(tmp_path, encode, method):
    file = tmp_path / "a.zip"
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.writestr("a.png", encode(0))
        archive.writestr("b.png", encode(1))
    source = open_source(str(file))
    first, second = records_of(source.index())
    content = bytearray(file.read_bytes())
    content[200] ^= 0xFF
    file.write_bytes(content)
    with pytest.raises(BadImageError, match="damaged in its zip archive"):
        source.read(first)
    assert source.read(second) == encode(1)


def test_a_member_is_not_inflated_beyond_its_stated_size(tmp_path):
    file, size = tmp_path / "bomb.zip", 10_000_000
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(size))
    content = file.read_bytes()
    central = content.index(b"PK\1\2")
    stated = content[:central] + content[central:].replace(struct.pack("<I", size), struct.pack("<I", 10))
    file.write_bytes(stated)
    source = open_source(str(file))
    (record,) = records_of(source.index())
    assert record.num_bytes == 10
    with pytest.raises(BadImageError, match="damaged in its zip archive"):
        source.read(record)


def test_a_replaced_archive_is_detected(plain_tree, tmp_path):
    file = pack(plain_tree, tmp_path / "a.zip")
    source = open_source(str(file))
    last = max(records_of(source.index()), key=lambda record: int(record.locator.split(":")[0]))
    file.write_bytes(bytes(file.stat().st_size))
    with pytest.raises(SourceError, match="has changed since it was listed"):
        source.read(last)
    file.write_bytes(b"short")
    with pytest.raises(SourceError, match=r"ends .* bytes early"):
        source.read(last)
    file.unlink()
    with pytest.raises(SourceError, match="cannot be read: No such file"):
        source.read(last)


def test_unusable_archives_are_refused(tmp_path, encode):
    def refusal(file: str) -> str:
        with pytest.raises(SourceError) as caught:
            open_source(str(tmp_path / file)).index()
        return str(caught.value)

    (tmp_path / "text.zip").write_bytes(b"no archive")
    assert "text.zip is not a readable zip archive" in refusal("text.zip")
    with zipfile.ZipFile(tmp_path / "empty.zip", "w"):
        pass
    assert "empty.zip contains no images: found no files" in refusal("empty.zip")
    assert "gone.zip does not exist" in refusal("gone.zip")
    with zipfile.ZipFile(tmp_path / "other.zip", "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("a.png", encode())
    assert "a.png in" in refusal("other.zip")
    assert (
        "uses compression method 12 (BZIP2): expected 0 (stored) or 8 (deflated); unpack the archive (7z x)"
        in refusal("other.zip")
    )
    assert "other.zip/inside contains no images: found no files" in refusal("other.zip/inside")
    with zipfile.ZipFile(tmp_path / "twice.zip", "w") as archive:
        archive.writestr("a.png", encode(0))
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a.png", encode(1))
    assert "twice.zip contains several members with the same name" in refusal("twice.zip")
    whole = pack_two(tmp_path / "whole.zip", encode)
    (tmp_path / "cut.zip").write_bytes(whole[:-30])
    assert "cut.zip is not a readable zip archive" in refusal("cut.zip")
    (tmp_path / "locked.zip").write_bytes(whole.replace(b"PK\1\2\x14\3\x14\0\0", b"PK\1\2\x14\3\x14\0\1"))
    assert "is encrypted: unpack the archive with its password (unzip or 7z x)" in refusal("locked.zip")


def pack_two(file: Path, encode) -> bytes:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.png", encode(0))
        archive.writestr("b.png", encode(1))
    return file.read_bytes()


def test_a_folder_is_refused_as_a_zip_archive(tmp_path):
    with pytest.raises(SourceError, match="is a folder: expected a zip archive"):
        open_source(str(tmp_path), "zip")
