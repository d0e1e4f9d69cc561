import os
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS

from repa_pipe.errors import SourceError
from repa_pipe.sources import SourceOptions, index_digest, open_source, records_of


def assert_as_torchvision(root: Path, listing: int) -> None:
    def is_read(path: str) -> bool:
        hidden = Path(path).name.startswith(".")
        return path.lower().endswith((*IMG_EXTENSIONS, ".gif")) and not hidden

    source = open_source(str(root), "folder", SourceOptions(listing=listing))
    expected = ImageFolder(str(root), is_valid_file=is_read if listing > 1 else None)
    index = source.index()
    assert [str(root / record.key) for record in records_of(index)] == [path for path, _ in expected.samples]
    assert index["label"].to_pylist() == expected.targets
    assert list(source.class_names) == expected.classes


@pytest.mark.parametrize("listing", [1, 2])
def test_order_labels_and_classes_match_torchvision(tree, listing):
    assert_as_torchvision(tree, listing)
    assert open_source(str(tree)).class_names == ("N01", "n02", "n02-x", "n10", "n30")


names = st.text(st.sampled_from("ab-_.AZ ~é0"), min_size=1, max_size=3).filter(lambda name: name.strip("."))
folders = st.lists(st.lists(names, min_size=1, max_size=3), min_size=1, max_size=12)


@pytest.mark.parametrize("listing", [1, 2])
@settings(max_examples=40, deadline=None)
@given(folders)
def test_any_tree_is_listed_in_torchvisions_order(tmp_path_factory, listing, folders):
    if listing > 1:
        folders = [[name.lstrip(".") for name in parts] for parts in folders]
    root = tmp_path_factory.mktemp("tree")
    for number, parts in enumerate(folders):
        folder = root.joinpath(*parts)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{parts[-1]}{number}.png").write_bytes(bytes(number))
    assert_as_torchvision(root, listing)
    shutil.rmtree(root)


def test_every_record_has_its_size_and_can_be_read(tree):
    source = open_source(str(tree))
    for record in records_of(source.index()):
        data = source.read(record)
        assert data == (tree / record.key).read_bytes()
        assert len(data) == record.num_bytes


def test_sixteen_threads_read_the_same_bytes(tree):
    source = open_source(str(tree))
    records = list(records_of(source.index())) * 20
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(source.read, records)) == [(tree / record.key).read_bytes() for record in records]


def test_a_pickled_copy_reads_without_listing(tree):
    source = open_source(str(tree))
    record = list(records_of(source.index()))[3]
    data = source.read(record)
    pickled = pickle.dumps(source)
    assert len(pickled) < 1000
    (tree / "n10" / "folder").unlink()  # listing would now return something else
    assert pickle.loads(pickled).read(record) == data


def test_a_moved_folder_has_the_same_digest(tree, tmp_path):
    before = open_source(str(tree)).index()
    shutil.copytree(tree, tmp_path / "moved", symlinks=True)
    after = open_source(str(tmp_path / "moved")).index()
    assert index_digest(after) == index_digest(before)
    (tmp_path / "moved" / "n02" / "a.jpg").write_bytes(b"another image")
    assert index_digest(open_source(str(tmp_path / "moved")).index()) != index_digest(before)


def test_progress_counts_class_folders(tree):
    seen = []
    open_source(str(tree)).index(lambda done, total: seen.append((done, total)))
    assert seen == [(done, 5) for done in range(1, 6)]


def test_a_relative_path_survives_a_change_of_folder(tree, monkeypatch):
    monkeypatch.chdir(tree.parent)
    source = open_source(tree.name)
    record = next(records_of(source.index()))
    monkeypatch.chdir("/")
    assert source.read(record) == (tree / record.key).read_bytes()
    assert source.describe() == {"kind": "folder", "path": str(tree), "options": {"listing": 2}}


def test_a_flat_folder_is_one_class(tmp_path, encode):
    for name in ["b.png", "a.JPG", "readme.txt"]:
        (tmp_path / name).write_bytes(encode())
    source = open_source(str(tmp_path))
    assert [(record.key, record.label) for record in records_of(source.index())] == [("a.JPG", 0), ("b.png", 0)]
    assert source.class_names == ("images",)
    assert source.read(next(records_of(source.index()))) == encode()


@pytest.fixture
def archive(tmp_path, encode):
    """A dataset as written by REPA's dataset_tools.py: numbered folders, and labels in a file."""
    for number in range(4):
        file = tmp_path / f"0000{number // 2}" / f"img{number:08d}.png"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(encode(number))
    return tmp_path


def test_labels_of_repas_archives_come_from_dataset_json(archive):
    labels = '["00000/img00000000.png", 7], ["00000/img00000001.png", 0], ["00001/img00000003.png", 2]'
    labels += ', ["00001/img00000002.png", 5]'
    (archive / "dataset.json").write_text(f'{{"labels": [{labels}]}}')
    source = open_source(str(archive))
    assert source.index()["label"].to_pylist() == [7, 0, 5, 2]
    assert source.class_names == ("0", "1", "2", "3", "4", "5", "6", "7")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"labels": null}', "has no labels"),
        ('{"labels": [["00000/img00000000.png", 7]]}', r"no label for 3 of 4 images \(00000/img00000001.png, "),
        ('{"labels": {', "not valid JSON"),
        (
            '{"labels": [["00000/img00000000.png", true], ["00000/img00000001.png", 1], '
            '["00001/img00000002.png", 1], ["00001/img00000003.png", 1]]}',
            "has the label True: expected a class number",
        ),
        ('{"labels": [3]}', "expected .labels. to be a list"),
        (
            '{"labels": [["00000/img00000000.png", 7], ["00000/img00000001.png", [1, 0]], '
            '["00001/img00000002.png", 1], ["00001/img00000003.png", 1]]}',
            r"has the label \[1, 0\]: expected a class number",
        ),
    ],
)
def test_a_labels_file_that_does_not_match_is_refused(archive, content, message):
    (archive / "dataset.json").write_text(content)
    with pytest.raises(SourceError, match=f"{archive}/dataset.json.*{message}|{archive}/dataset.json {message}"):
        open_source(str(archive)).index()


def test_a_json_file_of_another_program_is_ignored(archive):
    (archive / "dataset.json").write_text('{"name": "photographs"}')
    assert open_source(str(archive)).class_names == ("00000", "00001")


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(SourceError, match=f"{tmp_path}/gone does not exist: expected a folder"):
        open_source(str(tmp_path / "gone"))


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(
        SourceError, match=f"{tmp_path} contains no images: it is empty; expected one folder of images per class"
    ):
        open_source(str(tmp_path)).index()


def test_a_folder_without_images_is_refused_with_its_contents(tmp_path):
    (tmp_path / "n01").mkdir()
    for number in range(3):
        (tmp_path / "n01" / f"{number}.npy").write_bytes(b"")
    with pytest.raises(
        SourceError, match=rf"{tmp_path} contains no images: found 3 files: ending .npy \(3, such as n01/0.npy\)"
    ):
        open_source(str(tmp_path)).index()


def test_an_empty_class_is_refused_like_in_torchvision(tree):
    (tree / "empty").mkdir()
    (tree / ".cache").mkdir()
    with pytest.raises(FileNotFoundError):
        ImageFolder(str(tree))
    with pytest.raises(
        SourceError, match=r"1 of 6 class folders in .* contain no images \(empty\).* --class-order FILE"
    ):
        open_source(str(tree)).index()


def test_a_folder_of_splits_is_refused(tree):
    root = tree.parent / "imagenet"
    root.mkdir()
    tree.rename(root / "train")
    shutil.copytree(root / "train", root / "val")
    with pytest.raises(
        SourceError, match=rf"contains splits \(train, val\), not classes: .* --split train, or specify {root}/train"
    ):
        open_source(str(root)).index()


def test_a_broken_link_is_refused(tree):
    (tree / "n02" / "lost.png").symlink_to(tree / "nowhere")
    with pytest.raises(SourceError, match=r"n02/lost.png cannot be read: No such file or directory; fix or remove"):
        open_source(str(tree)).index()


def test_a_loop_of_links_is_refused(tree):
    (tree / "n02" / "sub" / "loop").symlink_to(tree / "n02")
    with pytest.raises(SourceError, match="n02/sub/loop links to a folder that contains it"):
        open_source(str(tree)).index()


def test_a_pipe_with_the_name_of_an_image_is_refused(tree):
    os.mkfifo(tree / "n02" / "pipe.png")
    with pytest.raises(SourceError, match=r"n02/pipe.png is not a regular file"):
        open_source(str(tree)).index()


def test_a_name_that_is_not_utf8_is_refused(tree, encode):
    Path(os.fsdecode(os.fsencode(tree / "n02") + b"/\xff.png")).write_bytes(encode())
    with pytest.raises(SourceError, match=r"n02/\\udcff.png' is not valid UTF-8"):
        open_source(str(tree)).index()


def test_a_file_that_changed_after_listing_is_reported(tree):
    source = open_source(str(tree))
    records = list(records_of(source.index()))
    (tree / records[0].key).write_bytes(b"short")
    with pytest.raises(SourceError, match=rf"{records[0].key} in .* has 5 bytes and had .* when it was listed"):
        source.read(records[0])
    (tree / records[1].key).unlink()
    with pytest.raises(SourceError, match=f"{records[1].key} cannot be read: No such file"):
        source.read(records[1])


def test_an_unlabeled_folder_is_one_class(archive):
    (archive / "on top.png").write_bytes(b"an image")
    (archive / "dataset.json").write_text('{"labels": null}')
    with pytest.raises(SourceError, match=r"has no labels .* pass --unlabeled"):
        open_source(str(archive)).index()
    source = open_source(str(archive), None, SourceOptions(unlabeled=True))
    assert source.class_names == ("images",)
    assert source.index()["label"].to_pylist() == [0] * 5
    assert source.index()["key"].to_pylist()[:2] == ["on top.png", "00000/img00000000.png"]
    assert [(each.reason, each.example) for each in source.skipped] == [("ending .json", "dataset.json")]


def test_the_files_of_a_large_folder_are_listed_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr("repa_pipe.sources.folder_scan._LARGE", 3)
    for number in range(20):
        (tmp_path / f"{number:02d}.png").write_bytes(bytes(number))
    records = list(records_of(open_source(str(tmp_path)).index()))
    assert [(record.key, record.num_bytes) for record in records] == [(f"{n:02d}.png", n) for n in range(20)]
    (tmp_path / "20.png").symlink_to("nowhere")
    with pytest.raises(SourceError, match=r"20\.png cannot be read: No such file"):
        open_source(str(tmp_path)).index()
