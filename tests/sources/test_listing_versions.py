"""Sources are listed by the rules of the version that created the store; files that these leave out are named."""

import tarfile
import zipfile
from io import BytesIO

import pytest

from repa_pipe.errors import SourceError
from repa_pipe.sources import SourceOptions, index_digest, open_recorded, open_source

OLD = SourceOptions(listing=1)
FILES = ["n01/a.jpg", "n01/b.gif", "n01/c.txt", ".cache/d.png", "n02/._e.png", "n02/f.JFIF", "n02/g.png"]


@pytest.fixture
def folder(tmp_path, encode):
    for seed, name in enumerate(FILES):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(seed))
    return tmp_path / "images"


def packed(folder):
    file = folder.with_suffix(".zip")
    with zipfile.ZipFile(file, "w") as archive:
        for name in FILES:
            archive.write(folder / name, name)
    return file


@pytest.mark.parametrize("pack", [lambda folder: folder, packed], ids=["folder", "zip"])
def test_the_rules_of_0_1_0_list_what_they_listed_and_name_what_they_leave_out(folder, pack):
    source = open_source(str(pack(folder)), None, OLD)
    assert source.index()["key"].to_pylist() == [".cache/d.png", "n01/a.jpg", "n02/._e.png", "n02/g.png"]
    assert source.index()["label"].to_pylist() == [0, 1, 2, 2]
    assert source.class_names == (".cache", "n01", "n02")
    left_out, classes = source.notes
    assert "leaves out (2, such as n01/b.gif)" in left_out
    assert "(.cache)" in classes
    assert all("create a new store" in note for note in source.notes)


@pytest.mark.parametrize("pack", [lambda folder: folder, packed], ids=["folder", "zip"])
def test_new_stores_list_all_image_endings_and_no_hidden_files(folder, pack):
    source = open_source(str(pack(folder)))
    assert source.index()["key"].to_pylist() == ["n01/a.jpg", "n01/b.gif", "n02/f.JFIF", "n02/g.png"]
    assert source.class_names == ("n01", "n02")
    assert source.notes == ()
    assert {(each.reason, each.count) for each in source.skipped} == {
        ("hidden", 1),
        ("created by other programs", 1),
        ("ending .txt", 1),
    }


def test_a_recorded_source_without_a_version_has_the_rules_of_0_1_0(folder):
    old = open_recorded({"kind": "folder", "path": str(folder)})
    new = open_recorded(open_source(str(folder)).describe())
    assert (old.options.listing, new.options.listing) == (1, 2)
    assert index_digest(old.index()) != index_digest(new.index())


def test_rules_of_a_later_version_are_refused(folder):
    recorded = {"kind": "folder", "path": str(folder), "options": {"listing": 3}}
    with pytest.raises(SourceError, match="recorded in the store: rules of listing 3, expected 1 to 2: install"):
        open_recorded(recorded)


def test_the_rules_of_0_1_0_drop_repeated_parts_of_a_tar_sample_and_count_them(tmp_path, encode):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, data in [("0.jpg", b"old"), ("0.JPG", encode()), ("0.cls", b"3"), ("1.gif", encode())]:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, BytesIO(data))
    source = open_source(str(tmp_path / "a.tar"), None, OLD)
    assert source.index()["key"].to_pylist() == ["a.tar/0.JPG"]
    (note,) = source.notes
    assert "leaves out (2, such as " in note
