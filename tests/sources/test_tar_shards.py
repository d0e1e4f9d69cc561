import gzip
import io
import pickle
import subprocess
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from repa_pipe.errors import SourceError
from repa_pipe.sources import index_digest, open_source, records_of

LONG = "n01440764/" + "a" * 120  # longer than a ustar header permits


def write_tar(file: Path, members: list[tuple[str, bytes]], form: int = tarfile.PAX_FORMAT) -> Path:
    """Pack members like webdataset's TarWriter: with a fractional time, pax adds a header to each member."""
    with tarfile.open(file, "w", format=form) as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size, member.mtime = len(data), 1_700_000_000.25
            archive.addfile(member, io.BytesIO(data))
    return file


@pytest.fixture
def shards(tmp_path, encode):
    """Three tar files whose labels are text, JSON, or both."""
    members = [(f"{number:06d}", encode(number), number % 3) for number in range(9)]
    first = [part for key, data, label in members[:3] for part in [(f"{key}.jpg", data), (f"{key}.cls", b"%d" % label)]]
    second = [
        part
        for key, data, label in members[3:6]
        for part in [(f"{key}.cls", b"%d\n" % label), (f"{key}.json", b'{"label": 77}'), (f"{key}.png", data)]
    ]
    third = [
        part
        for key, data, label in members[6:]
        for part in [(f"x/{key}.JPEG", data), (f"x/{key}.json", b'{"label": %d, "name": "n"}' % label)]
    ]
    write_tar(tmp_path / "train-0002.tar", third)
    write_tar(tmp_path / "train-0000.tar", first)
    write_tar(tmp_path / "train-0001.tar", second)
    return tmp_path


def test_samples_are_listed_file_by_file_in_packed_order(shards, encode):
    source = open_source(str(shards / "train-*.tar"))
    index = source.index()
    assert index["key"].to_pylist() == [
        *(f"train-0000.tar/{number:06d}.jpg" for number in range(3)),
        *(f"train-0001.tar/{number:06d}.png" for number in range(3, 6)),
        *(f"train-0002.tar/x/{number:06d}.JPEG" for number in range(6, 9)),
    ]
    assert index["label"].to_pylist() == [0, 1, 2] * 3
    assert source.class_names == ("0", "1", "2")
    assert [source.read(record) for record in records_of(index)] == [encode(number) for number in range(9)]


def test_a_folder_a_glob_and_a_moved_folder_have_the_same_digest(shards):
    digest = index_digest(open_source(str(shards)).index())
    assert open_source(str(shards)).kind == "tar"
    assert index_digest(open_source(str(shards / "*.tar")).index()) == digest
    moved = shards.rename(shards.with_name(f"{shards.name}-moved"))
    assert index_digest(open_source(str(moved)).index()) == digest
    one = open_source(str(moved / "train-0001.tar"))
    assert index_digest(one.index()) != digest
    assert len(one.index()) == 3


def test_a_glob_over_folders_distinguishes_files_with_the_same_name(tmp_path, encode):
    for folder in ["a", "b"]:
        (tmp_path / folder).mkdir()
        write_tar(tmp_path / folder / "0.tar", [("0.png", encode(ord(folder))), ("0.cls", b"0")])
    source = open_source(str(tmp_path / "?" / "*.tar"))
    assert source.index()["key"].to_pylist() == ["a/0.tar/0.png", "b/0.tar/0.png"]
    assert [source.read(record) for record in records_of(source.index())] == [encode(ord("a")), encode(ord("b"))]


def test_pickled_copies_in_sixteen_threads_read_the_same_bytes(shards, encode):
    source = open_source(str(shards))
    records = list(records_of(source.index())) * 20
    worker = pickle.loads(pickle.dumps(source))
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(worker.read, records)) == [encode(number) for number in range(9)] * 20


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_long_and_non_ascii_names_are_read_in_every_tar_format(tmp_path, encode, form):
    stem = "d" * 90 + "/" + "n" * 60 if form == tarfile.USTAR_FORMAT else LONG + "日本"
    file = write_tar(tmp_path / "a.tar", [(f"{stem}.png", encode()), (f"{stem}.cls", b"4")], form)
    source = open_source(str(file))
    (record,) = records_of(source.index())
    assert record.key == f"a.tar/{stem}.png"
    assert record.label == 4
    assert source.read(record) == encode()


@pytest.mark.parametrize("options", [["--format=gnu"], ["--format=pax"], ["--format=v7"], ["-b", "2000"]])
def test_archives_of_the_tar_command_are_read(tmp_path, encode, options):
    (tmp_path / "0.png").write_bytes(encode(0))
    (tmp_path / "0.cls").write_text("3")
    command = ["tar", "--create", "--file=a.tar", *options, "./0.png", "./0.cls"]
    subprocess.run(command, cwd=tmp_path, check=True)
    source = open_source(str(tmp_path / "a.tar"))
    (record,) = records_of(source.index())
    assert (record.key, record.label) == ("a.tar/./0.png", 3)
    assert source.read(record) == encode(0)


def test_a_member_larger_than_eight_gigabytes_is_skipped(tmp_path, encode):
    large = tarfile.TarInfo("large.bin")
    large.size = 9 << 30
    small = write_tar(tmp_path / "small.tar", [("0.png", encode()), ("0.cls", b"0")]).read_bytes()
    for form in [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]:
        header = large.tobuf(form)
        with (tmp_path / "a.tar").open("wb") as file:
            file.write(header)
            file.seek(large.size, io.SEEK_CUR)  # a hole, which takes no disk space
            file.write(small)
        source = open_source(str(tmp_path / "a.tar"))
        (record,) = records_of(source.index())
        assert record.locator == f"a.tar:{len(header) + large.size + small.index(encode())}"
        assert source.read(record) == encode()


def test_progress_counts_files(shards):
    seen = []
    open_source(str(shards)).index(lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_other_parts_of_a_sample_and_other_files_are_ignored(tmp_path, encode):
    parts = [("0.png", encode()), ("0.seg.png", b"mask"), ("0.txt", b"caption"), ("0.cls", b"1"), ("notes.json", b"{}")]
    assert open_source(str(write_tar(tmp_path / "a.tar", parts))).index()["key"].to_pylist() == ["a.tar/0.png"]


BROKEN_SAMPLES = {
    "no label": (
        [("a.jpg", b"x")],
        r"a.jpg in .*a.tar has no label: expected a .cls or .json .* pass --unlabeled",
    ),
    "a label elsewhere": (
        [("a.jpg", b"x"), ("b.jpg", b"x"), ("a.cls", b"0")],
        "contains the label a.cls, but the first image of .* has no label next to it: .* --unlabeled",
    ),
    "a second image without a label": (
        [("a.jpg", b"x"), ("a.cls", b"0"), ("b.jpg", b"x")],
        "b.jpg in .* has no label: expected .* --unlabeled",
    ),
    "no image": (
        [("a.txt", b"x"), ("a.cls", b"0")],
        "a.cls in .* has no image next to it: expected an image of the same name",
    ),
    "two images": (
        [("a.jpg", b"x"), ("a.png", b"x"), ("a.cls", b"0")],
        "several images in one sample, a.jpg and a.png",
    ),
    "a word for a label": ([("a.jpg", b"x"), ("a.cls", b"goldfish")], "a.cls in .* contains 'goldfish'"),
    "a fraction for a label": ([("a.jpg", b"x"), ("a.cls", b"1.5")], "a.cls in .* contains '1.5'"),
    "no label in the JSON": (
        [("a.jpg", b"x"), ("a.json", b'{"text": 1}')],
        'a.json in .* expected a class number as "label"',
    ),
    "no JSON": ([("a.jpg", b"x"), ("a.json", b"{")], 'a.json in .* expected a class number as "label"'),
    "a list": ([("a.jpg", b"x"), ("a.json", b"[1]")], 'a.json in .* expected a class number as "label"'),
    "a truth value": (
        [("a.jpg", b"x"), ("a.json", b'{"label": true}')],
        'a.json in .* expected a class number as "label"',
    ),
    "a huge label file": ([("a.jpg", b"x"), ("a.cls", bytes(2 << 20))], "2,097,152 bytes: too large for a label"),
    "one name twice in a sample": (
        [("a.jpg", b"x"), ("a.jpg", b"y"), ("a.cls", b"0")],
        "has two members for .jpg of one sample, a.jpg and a.jpg: rename one",
    ),
    "names that differ by case": (
        [("a.jpg", b"x"), ("a.cls", b"0"), ("a.JPG", b"y")],
        "has two members for .jpg of one sample, a.jpg and a.JPG: rename one",
    ),
    "nothing": ([], r"contains no images \(found no files\): expected members such as 000017.jpg and 000017.cls"),
}


@pytest.mark.parametrize("name", BROKEN_SAMPLES)
def test_an_invalid_webdataset_sample_is_refused(tmp_path, name):
    members, message = BROKEN_SAMPLES[name]
    with pytest.raises(SourceError, match=message):
        open_source(str(write_tar(tmp_path / "a.tar", members))).index()


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tgz", "a.tar"])
def test_a_compressed_tar_is_refused_with_any_suffix(shards, name):
    file = shards / name
    file.write_bytes(gzip.compress((shards / "train-0000.tar").read_bytes()))
    with pytest.raises(SourceError, match=rf"{name} is compressed \(gzip\).* decompress it first"):
        open_source(str(file)).index()


@pytest.mark.parametrize(("mode", "name"), [("w:bz2", "bzip2"), ("w:xz", "xz")])
def test_other_compression_formats_are_refused(tmp_path, mode, name):
    with tarfile.open(tmp_path / "a.tar", mode) as archive:
        archive.addfile(tarfile.TarInfo("a.jpg"))
    with pytest.raises(SourceError, match=rf"is compressed \({name}\)"):
        open_source(str(tmp_path / "a.tar")).index()


def test_damaged_archives_are_refused_and_not_read_partially(shards):
    whole = (shards / "train-0000.tar").read_bytes()
    second = whole.index(b"000001.jpg", 1024)  # the name in the second image's header
    file = shards / "train-0000.tar"

    def refusal(content: bytes) -> str:
        file.write_bytes(content)
        with pytest.raises(SourceError) as caught:
            open_source(str(file)).index()
        return str(caught.value)

    assert "is truncated: its last member ends at byte" in refusal(whole[: second + 700])
    assert "is not a tar archive or is damaged (no header at byte" in refusal(whole[: second + 100])
    assert "(no header at byte" in refusal(whole[:second] + b"!" + whole[second + 1 :])
    assert "(no header at byte 0)" in refusal(b"no archive")
    assert "(no header at byte 0)" in refusal(b"")
    assert "contains data after its end" in refusal(whole + whole)
    assert "contains data after its end" in refusal(whole + bytes(2 << 20))


def test_links_and_sparse_files_are_refused(tmp_path):
    with tarfile.open(tmp_path / "links.tar", "w") as archive:
        link = tarfile.TarInfo("a.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "b.jpg"
        archive.addfile(link)
    with pytest.raises(SourceError, match=r"a.jpg in .* is a link: pack the archive again with tar --dereference"):
        open_source(str(tmp_path / "links.tar")).index()
    with (tmp_path / "a.jpg").open("wb") as file:
        file.truncate(1 << 20)
    for form in ["gnu", "pax"]:
        command = ["tar", "--create", "--sparse", f"--format={form}", "--file=sparse.tar", "a.jpg"]
        subprocess.run(command, cwd=tmp_path, check=True)
        with pytest.raises(SourceError, match="is a sparse file: pack the archive again without --sparse"):
            open_source(str(tmp_path / "sparse.tar")).index()


def test_a_tar_file_truncated_after_listing_is_detected(shards):
    source = open_source(str(shards))
    last = list(records_of(source.index()))[-1]
    file = shards / "train-0002.tar"
    file.write_bytes(file.read_bytes()[:3000])
    with pytest.raises(SourceError, match=r"train-0002.tar ends [\d,]+ bytes early"):
        source.read(last)


def test_several_splits_in_one_folder_are_refused(shards):
    (shards / "train-0002.tar").rename(shards / "validation-0000.tar")
    with pytest.raises(SourceError, match=r"several splits \(train, validation\): read one with --split train"):
        open_source(str(shards)).index()
    assert len(open_source(str(shards / "train*.tar")).index()) == 6


def test_missing_tar_files_are_refused_immediately(tmp_path):
    with pytest.raises(
        SourceError, match=r"gone.tar does not exist: expected a .tar file, a folder of them, or a glob"
    ):
        open_source(str(tmp_path / "gone.tar"))
    with pytest.raises(SourceError, match=r"train-\*.tar matches no files: expected"):
        open_source(str(tmp_path / "train-*.tar"))
    with pytest.raises(SourceError, match=r"contains no .tar files: expected"):
        open_source(str(tmp_path), "tar")
    (tmp_path / "folder.tar").mkdir()
    with pytest.raises(SourceError, match=r"folder.tar is not a file: expected .tar files only"):
        open_source(str(tmp_path), "tar")
