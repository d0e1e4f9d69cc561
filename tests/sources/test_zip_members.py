"""Zip archives of other programs: unusual names, and kinds of archives that are refused with a remedy."""

import struct
import tracemalloc
import zipfile

import pytest

from repa_pipe.errors import BadImageError, SourceError
from repa_pipe.sources import SourceOptions, open_source, records_of


def pack(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            info = zipfile.ZipInfo("a")
            info.filename = name  # the constructor would replace separators
            archive.writestr(info, data)
    return path


def refusal(path):
    with pytest.raises(SourceError) as caught:
        open_source(str(path)).index()
    return str(caught.value)


@pytest.mark.parametrize("prefix", ["./", "/", "//", ".\\", "\\", ""])
def test_names_with_dots_slashes_and_backslashes_are_read_as_paths(tmp_path, encode, prefix):
    members = {f"{prefix}n01/a.png": encode(0), f"{prefix}n01\\sub\\b.png": encode(1), f"{prefix}n02\\": b""}
    members |= {f"{prefix}n02/c.png": encode(2), f"{prefix}n02//d.png": encode(3)}
    source = open_source(str(pack(tmp_path / "a.zip", members)))
    assert source.index()["key"].to_pylist() == ["n01/a.png", "n01/sub/b.png", "n02/c.png", "n02/d.png"]
    assert source.class_names == ("n01", "n02")
    assert [source.read(record) for record in records_of(source.index())] == [encode(seed) for seed in range(4)]
    inside = open_source(str(tmp_path / "a.zip/n01"))
    assert inside.index()["key"].to_pylist() == ["sub/b.png"]


def test_two_spellings_of_one_name_are_refused(tmp_path, encode):
    pack(tmp_path / "a.zip", {"n01/a.png": encode(0), "./n01/a.png": encode(1)})
    assert "several members with the same name (n01/a.png): pack it again" in refusal(tmp_path / "a.zip")


def test_a_name_that_leads_out_of_the_archive_is_refused(tmp_path, encode):
    pack(tmp_path / "a.zip", {"n01/../../a.png": encode()})
    assert "n01/../../a.png leads out of its archive" in refusal(tmp_path / "a.zip")


def test_deflate64_is_refused_with_a_program_that_unpacks_it(tmp_path, encode):
    data = pack(tmp_path / "a.zip", {"n01/a.png": encode()}).read_bytes()
    central = data.index(b"PK\1\2")
    (tmp_path / "a.zip").write_bytes(data[: central + 10] + struct.pack("<H", 9) + data[central + 12 :])
    text = refusal(tmp_path / "a.zip")
    assert "n01/a.png in" in text
    assert (
        "uses compression method 9 (Deflate64): expected 0 (stored) or 8 (deflated); unpack the archive (7z x)" in text
    )


@pytest.mark.parametrize("offset", [4, 6])
def test_a_part_of_a_split_archive_is_refused_with_the_command_that_joins_it(tmp_path, encode, offset):
    data = bytearray(pack(tmp_path / "a.zip", {"n01/a.png": encode()}).read_bytes())
    end = data.index(b"PK\5\6")
    data[end + offset] = 1
    (tmp_path / "a.zip").write_bytes(data)
    text = refusal(tmp_path / "a.zip")
    assert "is one part of a zip archive that is split into several files: join them first" in text
    assert "zip -s 0 a.zip --out joined.zip" in text


def test_an_unlabeled_archive_is_one_class(tmp_path, encode):
    members = {
        "00000/a.png": encode(0),
        "b.png": encode(1),
        "00001/c.png": encode(2),
        "dataset.json": b'{"labels": null}',
    }
    pack(tmp_path / "a.zip", members)
    assert "--unlabeled" in refusal(tmp_path / "a.zip")
    source = open_source(str(tmp_path / "a.zip"), None, SourceOptions(unlabeled=True))
    assert source.index()["key"].to_pylist() == ["b.png", "00000/a.png", "00001/c.png"]
    assert source.index()["label"].to_pylist() == [0, 0, 0]
    assert source.class_names == ("images",)
    assert [(each.reason, each.example) for each in source.skipped] == [("ending .json", "dataset.json")]


def stating(path, **sizes):
    """Overwrite fields of the last entry of an archive's central directory."""
    data = bytearray(path.read_bytes())
    entry = data.rindex(b"PK\1\2")
    for name, value in sizes.items():
        struct.pack_into("<I", data, entry + {"checksum": 16, "packed": 20, "size": 24}[name], value)
    path.write_bytes(data)
    return path


def test_an_image_that_states_gigabytes_is_quarantined_unread(tmp_path, encode):
    packed = pack(tmp_path / "a.zip", {"n01/a.png": encode(0), "n01/b.png": encode(1)})
    source = open_source(str(stating(packed, size=0xFFFFFFF0)))
    first, second = records_of(source.index())
    assert source.read(first) == encode(0)
    with pytest.raises(BadImageError, match=r"its file has 4,294,967,280 bytes: expected at most 1,073,741,824"):
        source.read(second)


def test_a_deflated_member_is_read_no_further_than_the_size_it_states(tmp_path, encode):
    packed = tmp_path / "a.zip"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("n01/a.png", encode(0))
        archive.writestr("n01/b.png", bytes(64 << 20))
    source = open_source(str(stating(packed, size=1000)))
    tracemalloc.start()
    with pytest.raises(BadImageError, match="the checksum differs"):
        source.read(list(records_of(source.index()))[1])
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("labels", "reason"),
    [(b"[" * 200_000, "is not valid JSON"), (b"{}", "has 4,026,531,840 bytes: expected at most 1,073,741,824")],
)
def test_labels_that_exhaust_their_reader_are_refused(tmp_path, encode, labels, reason):
    packed = pack(tmp_path / "a.zip", {"n01/a.png": encode(0), "dataset.json": labels})
    if labels == b"{}":
        stating(packed, size=0xF0000000)
    assert reason in refusal(packed)
