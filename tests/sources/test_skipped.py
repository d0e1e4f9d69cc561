"""Every file of a source becomes a sample or is counted with a reason."""

import re
import tarfile
import zipfile
from io import BytesIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from repa_pipe.errors import SourceError
from repa_pipe.sources import SourceOptions, describe_skipped, open_source, recorded_skipped
from repa_pipe.sources.skipped import SkipCounter, skipped_as_json

JUNK = (".git", ".ipynb_checkpoints", "@eaDir", "__MACOSX", "__pycache__", ".thumbnails", "lost+found")
FOLDERS = st.lists(st.sampled_from(("n01", "n02", "sub", "n-3", *JUNK)), max_size=3)
NAMES = st.builds(
    "".join,
    st.tuples(
        st.sampled_from(("", "", ".", "._", "Thumbs", "desktop")),
        st.sampled_from(("a", "b", "c", "image.v2")),
        st.sampled_from((".jpg", ".JPEG", ".gif", ".avif", ".heic", ".tga", ".txt", ".db", ".ini", "")),
    ),
)
TREES = st.lists(
    st.tuples(FOLDERS, NAMES), min_size=1, max_size=15, unique_by=lambda each: "/".join([*each[0], each[1]])
)


def in_folder(root, names):
    for name in names:
        path = root / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"data")
    return root / "tree"


def in_zip(root, names):
    with zipfile.ZipFile(root / "tree.zip", "w") as archive:
        for name in names:
            archive.writestr(name, b"data")
    return root / "tree.zip"


def in_tar(root, names):
    with tarfile.open(root / "tree.tar", "w") as archive:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = 4
            archive.addfile(member, BytesIO(b"data"))
    return root / "tree.tar"


@pytest.mark.parametrize("pack", [in_folder, in_zip, in_tar])
@pytest.mark.parametrize("unlabeled", [False, True])
@settings(max_examples=60, deadline=None)
@given(TREES)
def test_samples_and_skipped_files_are_all_files_of_any_tree(tmp_path_factory, pack, unlabeled, tree):
    root = tmp_path_factory.mktemp("tree")
    names = ["/".join([*folders, name]) for folders, name in tree]
    source = open_source(str(pack(root, names)), pack.__name__[3:], SourceOptions(unlabeled=unlabeled))
    try:
        found = len(source.index())
    except SourceError as error:  # there are no images, or no labels, or classes that cannot be meant
        assert re.search("no images|class folders in|has no label|several images in one sample", str(error))  # noqa: PT017
        return
    assert found + sum(each.count for each in source.skipped) == len(names)
    if pack is not in_tar:  # hidden names have a meaning for WebDataset
        parents = {part for key in source.index()["key"].to_pylist() for part in key.split("/")[:-1]}
        assert parents.isdisjoint(JUNK)


@pytest.mark.parametrize("junk", JUNK)
def test_folders_of_other_programs_are_no_classes(tmp_path, encode, junk):
    names = ["n01/a.png", "n02/b.png", f"{junk}/c.png", f"n01/{junk}/d.png"]
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode())
    source = open_source(str(tmp_path))
    assert source.class_names == ("n01", "n02")
    assert source.index()["key"].to_pylist() == ["n01/a.png", "n02/b.png"]
    assert sum(each.count for each in source.skipped) == 2


@pytest.mark.parametrize(
    "ending", [".gif", ".jp2", ".avif", ".jfif", ".jpe", ".tga", ".heic", ".HEIC", ".JpEg", ".jxl"]
)
def test_images_with_an_uncommon_ending_are_samples(tmp_path, encode, ending):
    (tmp_path / f"a{ending}").write_bytes(encode())
    source = open_source(str(tmp_path))
    assert source.index()["key"].to_pylist() == [f"a{ending}"]
    assert source.skipped == ()


def test_images_next_to_class_folders_are_counted(tmp_path, encode):
    (tmp_path / "n01").mkdir()
    for name in ("n01/a.png", "on top.png"):
        (tmp_path / name).write_bytes(encode())
    (skipped,) = open_source(str(tmp_path)).skipped
    assert (skipped.reason, skipped.count, skipped.example) == ("next to class folders", 1, "on top.png")


def test_a_link_that_leads_nowhere_is_refused_because_it_may_be_a_class(tmp_path, encode):
    (tmp_path / "n02").mkdir()
    (tmp_path / "n02/a.png").write_bytes(encode())
    (tmp_path / "n01").symlink_to(tmp_path / "gone")
    with pytest.raises(SourceError, match="n01 cannot be read: No such file or directory; fix or remove it"):
        open_source(str(tmp_path)).index()


def test_rare_endings_are_counted_together():
    counter = SkipCounter()
    for number in range(100):
        counter.add(f"ending .{number:03d}", f"a.{number:03d}")
    assert len(counter.result()) == 21
    assert counter.result()[-1].count == 80
    assert sum(each.count for each in counter.result()) == 100


def test_skipped_files_are_described_as_they_were_recorded():
    counter = SkipCounter()
    counter.add("ending .txt", "n01/a.txt")
    counter.add("hidden", ".git/", 1234)
    recorded = {"skipped": skipped_as_json(counter.result())}
    text = "1,235 files: hidden (1,234, such as .git/), ending .txt (1, such as n01/a.txt)"
    assert describe_skipped(recorded_skipped(recorded)) == text
    assert describe_skipped(recorded_skipped({"skipped": []})) == "no files"
    assert "not recorded" in describe_skipped(recorded_skipped({}))
