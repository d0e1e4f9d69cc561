"""WebDataset archives are grouped into samples as WebDataset's reader groups them."""

import re
import tarfile
from io import BytesIO

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from repa_pipe.errors import SourceError
from repa_pipe.sources import SourceOptions, open_source, records_of

IMAGES = ("jpg", "png", "webp")


def write(path, names):
    """Write members whose contents are their positions, so that samples can be told apart."""
    with tarfile.open(path, "w") as archive:
        for number, name in enumerate(names):
            data = b"%d" % number
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, BytesIO(data))


def webdataset_samples(names):
    """The rules of webdataset 1.0 (tariterators.py), stated independently: samples as dictionaries of positions."""
    samples, current = [], None
    for number, name in enumerate(names):
        if re.match(r"__[^/]*__($|/)", name):
            continue
        match = re.match(r"^((?:.*/|)[^.]+)[.]([^/]*)$", name)
        if match is None:
            continue
        key, extension = match[1], match[2].lower()
        if current is None or current[0] != key:
            current = (key, {})
            samples.append(current)
        if extension in current[1]:
            raise ValueError(f"{name}: duplicate file name")
        current[1][extension] = number
    return samples


members = st.builds(
    "".join,
    st.tuples(
        st.sampled_from(("", "", "a/", "./", "a.b/", "__meta__/", "/")),
        st.sampled_from(("0", "1", "0", "x.y", "", "__index__")),
        st.sampled_from((".jpg", ".JPG", ".png", ".cls", ".cls", ".txt", ".seg.png", ".", "")),
    ),
).filter(lambda name: name.strip("./"))


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(st.lists(members, min_size=1, max_size=12))
def test_members_are_grouped_as_by_webdatasets_reader(tmp_path_factory, names):
    names = ["first.jpg", "first.cls", *names]
    file = tmp_path_factory.mktemp("tar") / "a.tar"
    write(file, names)
    source = open_source(str(file))
    try:
        expected = webdataset_samples(names)
    except ValueError:
        with pytest.raises(SourceError, match=r"two members for|no label|no image next|several images"):
            source.index()
        return
    images = [[parts[each] for each in IMAGES if each in parts] for _, parts in expected]
    assume(all(len(found) <= 1 for found in images))
    assume(all(("cls" in parts) == bool(found) for (_, parts), found in zip(expected, images, strict=True)))
    found = [(int(source.read(record)), record.label) for record in records_of(source.index())]
    assert found == [(image[0], parts["cls"]) for (_, parts), image in zip(expected, images, strict=True) if image]
    used = 2 * len(found)
    assert used + sum(each.count for each in source.skipped) == len(names)


def test_a_sample_whose_name_was_used_before_is_another_sample(tmp_path):
    write(tmp_path / "a.tar", ["a.jpg", "a.cls", "b.jpg", "b.cls", "a.jpg", "a.cls"])
    source = open_source(str(tmp_path / "a.tar"))
    assert source.index()["key"].to_pylist() == ["a.tar/a.jpg", "a.tar/b.jpg", "a.tar/a.jpg#2"]
    assert [source.read(record) for record in records_of(source.index())] == [b"0", b"2", b"4"]


def test_members_that_webdataset_does_not_read_do_not_end_a_sample(tmp_path):
    write(tmp_path / "a.tar", ["__meta__", "0.jpg", "README", "._0.jpg", ".DS_Store", "0.cls", "0.seg.png", "0.txt"])
    source = open_source(str(tmp_path / "a.tar"))
    assert source.index()["label"].to_pylist() == [5]
    assert {each.reason: each.count for each in source.skipped} == {
        "created by other programs": 2,
        "part of a WebDataset sample, not its image": 2,
        "metadata of WebDataset": 1,
        "no key for WebDataset": 1,
    }


@pytest.mark.parametrize(
    "names",
    [
        ["0.jpg", "1.jpg"],
        ["0.jpg", "0.cls", "1.jpg", "1.cls"],
        ["0.jpg", "0.txt", "0.seg.png", "1.jpg"],
        ["n/0.jpg", "m/1.jpg"],
    ],
)
def test_an_unlabeled_tar_is_one_class(tmp_path, names):
    write(tmp_path / "a.tar", names)
    source = open_source(str(tmp_path / "a.tar"), None, SourceOptions(unlabeled=True))
    assert source.class_names == ("images",)
    assert source.index()["label"].to_pylist() == [0, 0]


def test_shards_in_an_archive_keep_their_labels(tmp_path):
    write(tmp_path / "0.tar", ["a.jpg", "b.txt", "a.txt"])
    write(tmp_path / "1.tar", ["first", "0.jpg", "0.cls"])
    with tarfile.open(tmp_path / "all.tar", "w") as archive:
        archive.add(tmp_path / "1.tar", "shards/1.tar")
    source = open_source(str(tmp_path / "all.tar"))
    assert source.index()["key"].to_pylist() == ["all.tar/shards/1/0.jpg"]
    assert source.index()["label"].to_pylist() == [2]


@pytest.mark.parametrize("label", ["9" * 5000, "²", "-1", ""])
@pytest.mark.parametrize(("ending", "form"), [("cls", "{}"), ("json", '{{"label": {}}}')])
def test_what_is_not_a_class_number_is_refused_in_one_line(tmp_path, label, ending, form):
    _refuse_label(tmp_path, ending, form.format(label).encode())


def test_a_deeply_nested_label_is_refused_in_one_line(tmp_path):
    _refuse_label(tmp_path, "json", b"[" * 900_000)


def _refuse_label(folder, ending, content):
    with tarfile.open(folder / "a.tar", "w") as archive:
        for name, data in (("0.png", b"image"), (f"0.{ending}", content)):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, BytesIO(data))
    with pytest.raises(SourceError, match=f"0.{ending} in .*: expected a class number|has label -1") as caught:
        open_source(str(folder / "a.tar")).index()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
