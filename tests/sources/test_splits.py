"""Files of splits: folders as the Hugging Face Hub holds them, names that state a split, folders of images."""

import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from repa_pipe.errors import SourceError
from repa_pipe.sources import SourceOptions, open_source, records_of
from repa_pipe.sources.splits import split_of

CARD = """---
license: mit
dataset_info:
  features: [{name: image, dtype: image}]
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*
  - split: extra
    path: [data/extra-a.parquet, data/extra-b.parquet]
---
# A dataset
"""


def write(path, first, count=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"bytes": f"image {first + number}".encode(), "path": None} for number in range(count)]
    pq.write_table(pa.table({"image": rows, "label": list(range(count))}), path)


def read(path, split=None):
    source = open_source(str(path), options=SourceOptions(split=split))
    assert source.kind == "parquet"
    return [source.read(record).decode().removeprefix("image ") for record in records_of(source.index())]


def refusal(path, split=None):
    with pytest.raises(SourceError) as caught:
        open_source(str(path), options=SourceOptions(split=split)).index()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def hub(tmp_path):
    """A folder as downloaded from the Hub."""
    for number, name in enumerate(["train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"]):
        write(tmp_path / f"data/{name}.parquet", 10 * number, 2)
    write(tmp_path / ".cache/huggingface/download/data/train.parquet", 90)
    (tmp_path / "README.md").write_text("# A dataset")
    return tmp_path


@pytest.mark.parametrize(
    ("file", "split"),
    [
        ("data/train-00000-of-00005.parquet", "train"),
        ("data/train-00000-of-00001-a09b74b3ef9c3b56.parquet", "train"),
        ("data/train_small-00000-of-00001.parquet", "train_small"),
        ("data/unsupervised-00000-of-00001.parquet", "unsupervised"),
        ("plain_text/test-00000-of-00001.parquet", "test"),
        ("beans-validation.arrow", "validation"),
        ("imagenet-train-00000-of-01024.tar", "train"),
        ("imagenet_val-00000-of-00064.tar", "imagenet_val"),
        ("train/data-00000-of-00005.parquet", "train"),
        ("Validation/0000.parquet", "validation"),
        ("data-00000-of-00001.arrow", "data"),
        ("constraint.parquet", None),
        ("0000.tar", None),
    ],
)
def test_the_split_of_a_file_is_in_its_name_or_folder(file, split):
    assert split_of(file) == split


def test_a_hub_folder_is_read_by_split(hub):
    message = refusal(hub)
    assert "contains several splits (test, train): read one with --split train, or specify files with a glob" in message
    assert read(hub, "train") == ["0", "1", "10", "11"]
    assert read(hub, "test") == ["20", "21"]
    assert "has no split val: found test, train" in refusal(hub, "val")


def test_files_that_are_not_read_are_counted(hub):
    source = open_source(str(hub), options=SourceOptions(split="train"))
    assert [(entry.reason, entry.count, entry.example) for entry in source.skipped] == [
        ("hidden", 1, ".cache/huggingface/download/data/train.parquet"),
        ("not a .parquet file", 1, "README.md"),
        ("of another split or subfolder", 1, "data/test-00000-of-00001.parquet"),
    ]
    source = open_source(str(hub / "data/*.parquet"), options=SourceOptions(split="test"))
    assert [(entry.reason, entry.count) for entry in source.skipped] == [("of another split", 2)]


def test_hidden_files_are_not_read(tmp_path):
    write(tmp_path / "a.parquet", 0)
    (tmp_path / "._a.parquet").write_bytes(b"written by macOS")
    assert read(tmp_path) == ["0"]
    assert [(entry.reason, entry.example) for entry in open_source(str(tmp_path)).skipped] == [
        ("created by other programs", "._a.parquet")
    ]


def test_a_git_lfs_pointer_is_refused(hub):
    pointer = hub / "data/train-00000-of-00002.parquet"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n")
    assert "train-00000-of-00002.parquet is a Git LFS pointer instead of the file: download it with git lfs" in refusal(
        hub, "train"
    )
    assert read(hub, "test") == ["20", "21"]


def test_keys_of_a_split_are_those_of_its_files(hub):
    keys = open_source(str(hub), options=SourceOptions(split="test")).index()["key"].to_pylist()
    assert keys == ["data/test-00000-of-00001.parquet/0", "data/test-00000-of-00001.parquet/1"]


def test_folders_of_configurations_are_not_mixed(hub):
    write(hub / "small/train-00000-of-00001.parquet", 70)
    assert "contains .parquet files in several folders (data, small): specify one, such as" in refusal(hub, "train")
    assert read(hub / "small") == ["70"]
    assert "several splits" in refusal(hub)
    assert read(hub / "**/train-*.parquet") == ["0", "1", "10", "11", "70"]


def test_files_at_the_top_hide_those_in_subfolders(hub):
    write(hub / "top.parquet", 50)
    assert read(hub) == ["50"]
    skipped = {entry.reason: entry.count for entry in open_source(str(hub)).skipped}
    assert skipped["of another split or subfolder"] == 3


def test_a_file_that_states_no_split_is_not_mixed_with_a_split(tmp_path):
    write(tmp_path / "train.parquet", 0)
    write(tmp_path / "more.parquet", 1)
    assert "several splits (train, more.parquet, which states no split): read one with --split" in refusal(tmp_path)
    assert read(tmp_path, "train") == ["0"]
    assert read(tmp_path / "*.parquet") == ["1", "0"]
    assert "has no split val: found train, more.parquet, which states no split" in refusal(tmp_path, "val")
    (tmp_path / "train.parquet").unlink()
    assert read(tmp_path) == ["1"]
    assert "has no split train: found more.parquet, which states no split" in refusal(tmp_path, "train")


def test_the_card_of_a_hub_folder_defines_its_splits(hub):
    (hub / "README.md").write_text(CARD)
    (hub / "figure.png").write_bytes(b"a figure of the card, not an image of the dataset")
    write(hub / "data/extra-a.parquet", 30)
    write(hub / "data/extra-b.parquet", 31)
    assert "contains several splits (extra, train)" in refusal(hub)
    assert read(hub, "extra") == ["30", "31"]
    assert read(hub, "train") == ["0", "1", "10", "11"]
    assert "has no split test: found extra, train" in refusal(hub, "test")


def test_splits_of_the_card_that_were_not_downloaded_are_left_out(hub):
    (hub / "README.md").write_text(CARD)
    assert read(hub) == ["0", "1", "10", "11"]
    assert "has no split extra: found train" in refusal(hub, "extra")


@pytest.mark.parametrize("files", ["data/*", "[data/train-*, data/test-*]", "{train: 'data/*'}", "[{path: 'data/*'}]"])
def test_the_files_of_a_card_may_be_written_in_several_ways(hub, files):
    (hub / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files: {files}\n---\n")
    assert sorted(read(hub)) == ["0", "1", "10", "11", "20", "21"]


def test_several_configurations_of_a_card_are_refused_with_the_files_of_one(hub):
    (hub / "README.md").write_text(
        "---\nconfigs:\n- {config_name: a, data_files: data/train-*}\n- {config_name: b, data_files: data/test-*}\n---"
    )
    message = refusal(hub)
    assert "contains several datasets (a, b; configs in README.md): specify the files of one with a glob" in message
    glob = message.rpartition("such as ")[2].strip("'")
    assert read(glob) == ["0", "1", "10", "11"]


@pytest.mark.parametrize(
    ("front_matter", "message"),
    [
        ("configs: [", "README.md has invalid front matter ("),
        ("just prose", "README.md has invalid front matter ("),
        ("configs: 3", "README.md has invalid front matter ("),
        ("configs: [{config_name: a, data_files: [{split: train, path: 3}]}]", "README.md has invalid data_files ("),
        ("configs: [{config_name: a, data_files: ../*}]", "README.md has invalid data_files ("),
        ("configs: [{config_name: a, data_files: /data/*}]", "README.md has invalid data_files ("),
        ("configs: [{config_name: a, data_files: gone-*}]", "no .parquet files that its README.md states (gone-*)"),
    ],
)
def test_a_card_that_cannot_be_followed_is_refused(hub, front_matter, message):
    (hub / "README.md").write_text(f"---\n{front_matter}\n---\n")
    assert message in refusal(hub, "train")


@pytest.mark.parametrize("front_matter", ["license: mit", "configs: []", "configs: [{config_name: a, data_dir: data}]"])
def test_a_card_that_states_no_files_is_ignored(hub, front_matter):
    (hub / "README.md").write_text(f"---\n{front_matter}\n---\n")
    assert read(hub, "test") == ["20", "21"]


def test_the_splits_of_an_image_folder_are_its_folders(tmp_path, encode):
    for seed, name in enumerate(["train/a/1.png", "train/b/1.png", "val/a/1.png", "val/b/2.png"]):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(encode(seed))
    source = open_source(str(tmp_path), options=SourceOptions(split="val"))
    assert source.index().equals(open_source(str(tmp_path / "val")).index())
    assert [source.read(record) for record in records_of(source.index())] == [encode(2), encode(3)]
    assert "has no split test: expected one of its folders (train, val)" in refusal(tmp_path, "test")
    assert "contains splits (train, val), not classes: read one with --split train, or specify " in refusal(tmp_path)


def test_the_splits_of_a_zip_archive_are_its_folders(tmp_path, encode):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for seed, name in enumerate(["top/train/a/1.png", "top/val/a/1.png", "top/val/b/2.png"]):
            archive.writestr(name, encode(seed))
    source = open_source(str(tmp_path / "a.zip/top"), options=SourceOptions(split="val"))
    assert source.index()["key"].to_pylist() == ["a/1.png", "b/2.png"]
    assert [source.read(record) for record in records_of(source.index())] == [encode(1), encode(2)]
    assert "a.zip has no folder top/test/ (--split test)" in refusal(tmp_path / "a.zip/top", "test")
