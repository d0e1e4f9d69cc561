import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from repa_pipe.errors import BadImageError, SourceError
from repa_pipe.sources import UNKNOWN_SIZE, index_digest, open_source, parquet_files, records_of

CLASSES = ["tench, Tinca tinca", "goldfish", "great white shark"]
FEATURES = {
    "image": {"_type": "Image"},
    "label": {"_type": "ClassLabel", "names": CLASSES},
}


def write_parquet(
    file: Path,
    images: list[dict[str, object] | None],
    labels: list[object],
    features: dict[str, object] | None = FEATURES,
    *,
    rows: int = 4,
    names: tuple[str, str] = ("image", "label"),
) -> Path:
    table = pa.table(dict(zip(names, [pa.array(images), pa.array(labels)], strict=True)))
    if features is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, file, row_group_size=rows)
    return file


@pytest.fixture
def images(encode):
    return [{"bytes": encode(number), "path": f"n{number}.JPEG"} for number in range(20)]


@pytest.fixture
def files(tmp_path, images):
    """Two files of ten rows, in row groups of four, with names as on Hugging Face."""
    labels = [number % 3 for number in range(20)]
    write_parquet(tmp_path / "train-00001-of-00002.parquet", images[10:], labels[10:])
    write_parquet(tmp_path / "train-00000-of-00002.parquet", images[:10], labels[:10])
    return tmp_path


def test_rows_are_listed_file_by_file_with_class_names(files, images):
    source = open_source(str(files))
    index = source.index()
    assert source.kind == "parquet"
    assert index["key"].to_pylist()[9:11] == [
        "train-00000-of-00002.parquet/9/n9.JPEG",
        "train-00001-of-00002.parquet/0/n10.JPEG",
    ]
    assert index["label"].to_pylist() == [number % 3 for number in range(20)]
    assert set(index["num_bytes"].to_pylist()) == {UNKNOWN_SIZE}
    assert source.class_names == tuple(CLASSES)
    assert [source.read(record) for record in records_of(index)] == [image["bytes"] for image in images]


def test_the_digest_is_that_of_earlier_versions(files):
    assert index_digest(open_source(str(files)).index()) == (
        "f5bb7ca32696d7a9e4f4558d094d5dc4b77b72ccc5d7803c0741e199fb63e459"
    )


def test_a_glob_and_a_moved_folder_have_the_same_digest(files):
    digest = index_digest(open_source(str(files / "train-*.parquet")).index())
    moved = files.rename(files.with_name(f"{files.name}-moved"))
    assert index_digest(open_source(str(moved)).index()) == digest


def test_sixteen_threads_of_a_pickled_copy_read_each_row_group_once(files, images):
    source = open_source(str(files))
    worker = pickle.loads(pickle.dumps(source))
    records = list(records_of(source.index()))[:12]  # four row groups, as many as are cached
    worker.read(records[0])
    (files / "train-00001-of-00002.parquet").rename(files / "aside")
    with pytest.raises(SourceError, match=r"train-00001-of-00002.parquet is not a readable parquet file"):
        worker.read(records[10])
    (files / "aside").rename(files / "train-00001-of-00002.parquet")
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(worker.read, records * 20)) == [image["bytes"] for image in images[:12]] * 20
    for file in files.iterdir():
        file.unlink()
    assert [worker.read(record) for record in records] == [image["bytes"] for image in images[:12]]
    with pytest.raises(SourceError, match="No such file"):
        worker.read(list(records_of(source.index()))[-1])


def test_only_the_last_row_groups_are_cached(files):
    source = open_source(str(files))
    records = list(records_of(source.index()))
    for record in records:
        source.read(record)
    for file in files.iterdir():
        file.unlink()
    assert source.read(records[-1])
    with pytest.raises(SourceError, match="No such file"):
        source.read(records[0])


def test_columns_with_other_names_are_found_by_their_features(tmp_path, images):
    features = {"img": {"_type": "Image"}, "fine": {"_type": "ClassLabel", "names": ["a", "b"]}}
    write_parquet(tmp_path / "a.parquet", images, [0, 1] * 10, features, names=("img", "fine"))
    source = open_source(str(tmp_path / "a.parquet"))
    assert source.class_names == ("a", "b")
    assert source.read(next(records_of(source.index()))) == images[0]["bytes"]


def test_without_metadata_classes_are_numbers_and_paths_are_optional(tmp_path, images):
    bare = [{"bytes": image["bytes"]} for image in images]
    write_parquet(tmp_path / "a.parquet", bare, [2, 0] * 10, None)
    source = open_source(str(tmp_path / "a.parquet"))
    assert source.class_names == ("0", "1", "2")
    assert source.index()["key"].to_pylist()[:2] == ["a.parquet/0", "a.parquet/1"]
    assert source.read(next(records_of(source.index()))) == images[0]["bytes"]


def test_a_row_without_bytes_is_a_bad_image(tmp_path, images):
    rows = [images[0], {"bytes": None, "path": "n1.JPEG"}, None]
    source = open_source(str(write_parquet(tmp_path / "a.parquet", rows, [0, 1, 2])))
    records = list(records_of(source.index()))
    assert [record.key for record in records] == ["a.parquet/0/n0.JPEG", "a.parquet/1/n1.JPEG", "a.parquet/2"]
    assert source.read(records[0]) == images[0]["bytes"]
    for record in records[1:]:
        with pytest.raises(BadImageError, match="its row holds no image bytes"):
            source.read(record)


def test_progress_counts_files(files):
    seen = []
    open_source(str(files)).index(lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]


def test_several_splits_in_one_folder_are_refused(files, images):
    write_parquet(files / "validation-00000-of-00001.parquet", images, [0] * 20)
    with pytest.raises(
        SourceError, match=r"several splits \(train, validation\): .* glob, such as '\*train\*.parquet'"
    ):
        open_source(str(files)).index()
    assert len(open_source(str(files / "train-*.parquet")).index()) == 20


def test_unusable_files_are_refused(tmp_path, images):
    def refusal(file: Path) -> str:
        with pytest.raises(SourceError) as caught:
            open_source(str(file)).index()
        return str(caught.value)

    good = write_parquet(tmp_path / "good.parquet", images[:2], [0, 1])
    file = tmp_path / "a.parquet"
    file.write_bytes(good.read_bytes()[:-20])
    assert "a.parquet is not a readable parquet file" in refusal(file)
    write_parquet(file, images[:2], [-1, -1])
    assert "a.parquet/0/n0.JPEG has label -1" in refusal(file)
    write_parquet(file, images[:2], [0, None])
    assert "has no label in row 1" in refusal(file)
    write_parquet(file, images[:2], [0, 3])
    assert "expected class names for labels 0 to 3, found 3 names" in refusal(file)
    write_parquet(file, images[:0], [])
    assert "a.parquet is null: expected one image per row as struct" in refusal(file)
    write_parquet(file, images[:2], [0, 1], {"label": {"_type": "ClassLabel", "names": ["a", "b"]}})
    assert "a.parquet and good.parquet" in refusal(tmp_path)
    assert "have different class names" in refusal(tmp_path)


def test_a_damaged_row_group_is_a_source_error(tmp_path, images):
    file = write_parquet(tmp_path / "a.parquet", images[:2], [0, 1])
    source = open_source(str(file))
    record = next(records_of(source.index()))
    content = bytearray(file.read_bytes())
    content[4:2000] = bytes(1996)
    file.write_bytes(content)
    with pytest.raises(SourceError, match=r"a.parquet is damaged or has changed"):
        source.read(record)


def test_a_file_rewritten_with_smaller_row_groups_is_detected(files, images):
    source = open_source(str(files))
    fourth = list(records_of(source.index()))[3]
    write_parquet(files / "train-00000-of-00002.parquet", images[:10], [0] * 10, rows=2)
    with pytest.raises(SourceError, match="has changed since it was listed"):
        source.read(fourth)


def test_row_groups_too_large_for_memory_are_refused(files, monkeypatch):
    monkeypatch.setattr(parquet_files, "MAX_ROW_GROUP_BYTES", 1 << 17)
    assert len(open_source(str(files)).index()) == 20
    monkeypatch.setattr(parquet_files, "MAX_ROW_GROUP_BYTES", 1 << 13)
    with pytest.raises(SourceError, match=r"train-00000-of-00002.parquet has a row group of 0 MiB of images"):
        open_source(str(files)).index()


def repeated(value: bytes, count: int) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int32()), pa.array([value], pa.binary()))


def test_one_large_image_that_a_row_group_repeats_is_refused_before_it_is_expanded(tmp_path):
    images = repeated(bytes(900_000), 20_000)  # 18 GB in a file of a few kilobytes
    pq.write_table(pa.table({"image": images, "label": [0] * 20_000}), tmp_path / "a.parquet", store_schema=False)
    source = open_source(str(tmp_path / "a.parquet"))
    record = next(records_of(source.index()))
    with pytest.raises(SourceError, match=r"needs more than 512 MiB to read image: .* a decompression bomb"):
        source.read(record)
    assert pa.total_allocated_bytes() < 1 << 30


def test_paths_that_need_too_much_memory_are_refused(tmp_path, encode, monkeypatch):
    monkeypatch.setattr(parquet_files, "MAX_ROW_GROUP_BYTES", 1 << 20)
    write_parquet(tmp_path / "a.parquet", [{"bytes": encode(0), "path": "x" * 1000}] * 2000, [0] * 2000, rows=2000)
    with pytest.raises(SourceError, match=r"needs more than 1 MiB to read label and image.path"):
        open_source(str(tmp_path / "a.parquet")).index()


def test_more_rows_than_a_file_of_images_has_are_refused(tmp_path):
    count = parquet_files.MAX_ROWS + 1
    table = pa.table({"image": pa.nulls(count, pa.binary()), "label": pa.nulls(count, pa.int8()).fill_null(0)})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=count)
    with pytest.raises(SourceError, match="states 10,000,001 rows: expected at most 10,000,000; split the file"):
        open_source(str(tmp_path / "a.parquet")).index()
