"""Arrow streams and files, and the folders that Hugging Face's `save_to_disk` writes."""

import hashlib
import io
import json
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from repa_pipe.errors import SourceError
from repa_pipe.sources import (
    SourceOptions,
    arrow_batches,
    arrow_files,
    index_digest,
    open_recorded,
    open_source,
    records_of,
)

GENUINE = Path(__file__).parents[1] / "data/hf_arrow"
EXPECTED = json.loads((GENUINE / "expected.json").read_text())


def write(path: Path, table: pa.Table, *, rows: int = 3, is_file: bool = False, compression: str | None = None) -> Path:
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with (pa.ipc.new_file if is_file else pa.ipc.new_stream)(str(path), table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=rows)
    return path


@pytest.fixture
def rows(encode):
    return [{"bytes": encode(number), "path": f"n{number}.png"} for number in range(10)]


@pytest.fixture
def table(rows):
    return pa.table({"image": rows, "label": [number % 3 for number in range(10)]})


@pytest.fixture
def saved(tmp_path):
    """A writable copy of the genuine folders."""
    return Path(shutil.copytree(GENUINE, tmp_path / "saved"))


def refusal(path: Path, **options: object) -> str:
    with pytest.raises(SourceError) as caught:
        open_source(str(path), options=SourceOptions(**options)).index()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("folder", "label", "options"),
    [
        ("two_labels", "fine_label", {"label_column": "fine_label"}),
        ("two_labels", "coarse_label", {"label_column": "coarse_label"}),
        ("two_splits/train", "label", {}),
        ("two_splits/test", "label", {}),
        ("two_splits", "label", {"split": "train"}),
        ("two_splits", "label", {"split": "test"}),
    ],
)
def test_genuine_folders_are_read_as_hugging_face_reads_them(folder, label, options):
    source = open_source(str(GENUINE / folder), options=SourceOptions(**options))
    name, _, split = folder.partition("/")
    expected = EXPECTED[name]
    if name == "two_splits":
        expected = expected[split or options["split"]]
    assert source.kind == "arrow"
    assert source.class_names == tuple(expected["columns"][label])
    assert source.index()["label"].to_pylist() == [row[label] for row in expected["row"]]
    for record, row in zip(records_of(source.index()), expected["row"], strict=True):
        data = source.read(record)
        assert record.num_bytes == len(data) == row["stored_bytes"]
        assert record.key.rpartition("/")[2] == (row["stored_path"] or record.key.rpartition("/")[2])
        with Image.open(io.BytesIO(data)) as image:
            assert (image.format, image.mode, list(image.size)) == (row["stored_format"], row["mode"], row["size"])
            pixels = np.asarray(image.convert("RGB"))
        np.testing.assert_allclose(pixels.mean((0, 1)), row["rgb_mean"], atol=1)
        assert "rgb_sha256" not in row or hashlib.sha256(pixels.tobytes()).hexdigest() == row["rgb_sha256"]


def test_a_dict_of_splits_needs_a_split_and_a_data_set_has_none(saved):
    assert "contains several splits (test, train): read one with --split train, or specify " in refusal(
        saved / "two_splits"
    )
    assert "two_splits has no split val: found test, train" in refusal(saved / "two_splits", split="val")
    message = refusal(saved / "two_labels", split="train", label_column="fine_label")
    assert "two_labels is a single dataset with no splits: remove --split train" in message
    state = saved / "two_splits/test/state.json"
    state.write_text(state.read_text().replace('"_split": null', '"_split": "test"'))
    assert len(open_source(str(state.parent), options=SourceOptions(split="test")).index()) == 2


def test_a_dict_of_one_split_needs_no_option(saved):
    (saved / "two_splits/dataset_dict.json").write_text('{"splits": ["test"]}')
    assert len(open_source(str(saved / "two_splits")).index()) == 2


def test_the_recorded_source_is_opened_again_with_its_options(saved):
    options = SourceOptions(split="test")
    source = open_source(str(saved / "two_splits"), options=options)
    recorded = json.loads(json.dumps(source.describe()))
    assert recorded == {"kind": "arrow", "path": str(saved / "two_splits"), "options": {"split": "test", "listing": 2}}
    assert index_digest(open_recorded(recorded).index()) == index_digest(source.index())
    moved = (saved / "two_splits").rename(saved / "moved")
    assert index_digest(open_recorded(recorded, str(moved)).index()) == index_digest(source.index())


def test_files_are_read_in_the_order_of_the_state(saved, table):
    folder = saved / "two_splits/train"
    for name in "a", "b":
        write(folder / f"{name}.arrow", table)
    state = json.loads((folder / "state.json").read_text())
    state["_data_files"] = [{"filename": "b.arrow"}, {"filename": "a.arrow"}]
    (folder / "state.json").write_text(json.dumps(state))
    source = open_source(str(folder))
    assert source.index()["key"].to_pylist()[9:11] == ["b.arrow/9/n9.png", "a.arrow/0/n0.png"]
    assert [(entry.reason, entry.count, entry.example) for entry in source.skipped] == [
        ("not a .arrow file", 2, "dataset_info.json"),
        ("of another split or subfolder", 1, "data-00000-of-00001.arrow"),
    ]


@pytest.mark.parametrize("key", ["_indices_data_files", "_indices_files"])
def test_a_selection_of_rows_is_refused(saved, key):
    state = saved / "two_labels/state.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {key: [{"filename": "indices.arrow"}]}))
    message = refusal(saved / "two_labels", label_column="fine_label")
    assert "two_labels is a selection of rows (indices in state.json): save it again after flatten_indices()" in message


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ("{", "state.json cannot be read"),
        ("[]", "state.json holds a list, expected a JSON object"),
        ("{}", "state.json states no data files: save the dataset again"),
        ('{"_data_files": 3}', "state.json states no data files"),
        ('{"_data_files": [{"filename": "../a.arrow"}]}', "state.json states no data files"),
        ('{"_data_files": [{"filename": "gone.arrow"}]}', "gone.arrow is missing, which state.json states: copy the"),
    ],
)
def test_an_invalid_state_is_refused(saved, state, message):
    (saved / "two_labels/state.json").write_text(state)
    assert message in refusal(saved / "two_labels", label_column="fine_label")


@pytest.mark.parametrize("content", ["{}", '{"splits": []}', '{"splits": [1]}', '{"splits": "train"}'])
def test_an_invalid_list_of_splits_is_refused(saved, content):
    (saved / "two_splits/dataset_dict.json").write_text(content)
    assert "dataset_dict.json states no splits: save the dataset again" in refusal(saved / "two_splits")


@pytest.mark.parametrize("is_file", [False, True], ids=["stream", "file"])
@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
def test_streams_and_files_are_read_by_the_position_of_their_batches(tmp_path, table, rows, is_file, compression):
    table = table.append_column("kind", pa.array(list("abcabcabca")).dictionary_encode())
    path = write(tmp_path / "a.arrow", table, is_file=is_file, compression=compression)
    source = open_source(str(path))
    records = list(records_of(source.index()))
    assert [record.num_bytes for record in records] == [len(row["bytes"]) for row in rows]
    assert len({record.locator.rpartition(":")[0] for record in records}) == 4
    worker = pickle.loads(pickle.dumps(source))
    with ThreadPoolExecutor(16) as pool:
        backwards = list(pool.map(worker.read, records[::-1] * 10))
    assert backwards == [row["bytes"] for row in rows[::-1]] * 10


def test_dictionaries_at_any_depth_do_not_hinder_reading_by_position(tmp_path, rows):
    names = pa.array([row["path"] for row in rows]).dictionary_encode()
    images = pa.StructArray.from_arrays([pa.array([row["bytes"] for row in rows]), names], ["bytes", "path"])
    tags = pa.ListArray.from_arrays(list(range(11)), names)
    path = write(tmp_path / "a.arrow", pa.table({"image": images, "label": [0] * 10, "tags": tags}))
    source = open_source(str(path))
    assert source.index()["key"].to_pylist()[7] == "a.arrow/7/n7.png"
    assert [source.read(record) for record in records_of(source.index())] == [row["bytes"] for row in rows]


def test_a_row_is_read_from_its_batch_alone(tmp_path, table, rows, monkeypatch):
    path = write(tmp_path / "a.arrow", table, rows=1)
    source = open_source(str(path))
    records = list(records_of(source.index()))
    read, original = [], pa.ipc.read_message
    monkeypatch.setattr(arrow_batches.pa.ipc, "read_message", lambda file: read.append(file.tell()) or original(file))
    assert source.read(records[7]) == rows[7]["bytes"]
    assert read == [0, int(records[7].locator.split(":")[1])]  # the schema, and the batch


def test_images_are_mapped_instead_of_copied(tmp_path, encode):
    rows = [{"bytes": encode(number, (200, 200)), "path": ""} for number in range(50)]
    source = open_source(str(write(tmp_path / "a.arrow", pa.table({"image": rows, "label": [0] * 50}), rows=50)))
    record = list(records_of(source.index()))[-1]
    before = pa.total_allocated_bytes()
    source.read(record)
    assert pa.total_allocated_bytes() - before < 10_000


def test_a_folder_and_a_glob_of_arrow_files_are_sorted(tmp_path, table):
    for name in "train-00001-of-00002", "train-00000-of-00002":
        write(tmp_path / f"{name}.arrow", table)
    source = open_source(str(tmp_path))
    assert source.kind == "arrow"
    assert source.index()["key"].to_pylist()[9:11] == [
        "train-00000-of-00002.arrow/9/n9.png",
        "train-00001-of-00002.arrow/0/n0.png",
    ]
    assert index_digest(open_source(str(tmp_path / "*.arrow")).index()) == index_digest(source.index())


@pytest.mark.parametrize("is_file", [False, True], ids=["stream", "file"])
def test_truncated_and_damaged_files_are_refused(tmp_path, table, is_file):
    path = write(tmp_path / "a.arrow", table, is_file=is_file)
    content = path.read_bytes()
    for size in range(0, len(content) - 8, 97):
        path.write_bytes(content[:size])
        assert "a.arrow is not a readable Arrow file, is damaged, or has changed (" in refusal(path)
    path.write_bytes(b"something else, longer than a header of Arrow is")
    assert "a.arrow is not a readable Arrow file" in refusal(path)


def test_a_stream_whose_writer_was_killed_between_two_batches_is_refused(tmp_path, table):
    path = write(tmp_path / "a.arrow", table)
    end = len(path.read_bytes()) - 8  # without the end-of-stream marker
    path.write_bytes(path.read_bytes()[:end])
    assert (
        "a.arrow is not a readable Arrow file, is damaged, or has changed (it was not written to its end)"
        in refusal(path)
    )


def test_offsets_that_point_outside_the_file_are_refused(tmp_path, table, rows):
    path = write(tmp_path / "a.arrow", table, rows=10)
    sizes = np.cumsum([0, *(len(row["bytes"]) for row in rows)]).astype(np.int32)
    content = path.read_bytes()
    assert content.count(sizes.tobytes()) == 1
    damaged = sizes.copy()
    damaged[5] = 2**31 - 1
    path.write_bytes(content.replace(sizes.tobytes(), damaged.tobytes()))
    assert "a.arrow is not a readable Arrow file, is damaged" in refusal(path)


def test_a_file_that_was_replaced_is_detected(tmp_path, table):
    path = write(tmp_path / "a.arrow", table)
    source = open_source(str(path))
    records = list(records_of(source.index()))
    write(path, table.slice(0, 2))
    with pytest.raises(SourceError, match=r"a.arrow has changed since it was listed"):
        source.read(records[2])
    with pytest.raises(SourceError, match=r"a.arrow is not a readable Arrow file, is damaged, or has changed"):
        open_source(str(path)).read(records[9])
    path.unlink()
    with pytest.raises(SourceError, match="No such file"):
        open_source(str(write(tmp_path / "b.arrow", table))).read(records[0])


def test_a_file_that_grows_while_it_is_listed_is_refused(tmp_path, table, monkeypatch):
    path = write(tmp_path / "a.arrow", table)

    def list_and_grow(name):
        listed = arrow_batches.list_batches(name)
        write(path, table, rows=1)
        return listed

    monkeypatch.setattr(arrow_files, "list_batches", list_and_grow)
    assert "a.arrow changed while it was listed: wait until it is complete" in refusal(path)


def test_an_arrow_file_without_rows_is_refused(tmp_path, table):
    assert "a.arrow contains no rows" in refusal(write(tmp_path / "a.arrow", table.slice(0, 0)))


@pytest.mark.parametrize("compression", ["zstd", "lz4"])
@pytest.mark.parametrize("is_file", [False, True])
@pytest.mark.parametrize("kind", ["record batch", "dictionary"])
def test_compressed_messages_that_need_too_much_memory_are_refused(  # noqa: PLR0917
    tmp_path, monkeypatch, rows, compression, is_file, kind
):
    large = kind == "dictionary"
    names = pa.DictionaryArray.from_arrays(pa.array([0] * 10), pa.array(["x" * (50_000 if large else 5)]))
    table = pa.table({"image": [rows[0] if large else {"bytes": bytes(5000), "path": ""}] * 10, "label": names})
    path = write(tmp_path / "a.arrow", table, rows=10, is_file=is_file, compression=compression)
    source = open_source(str(path), options=SourceOptions(label_column="label"))
    record = next(records_of(source.index()))
    monkeypatch.setattr(arrow_batches, "MAX_COMPRESSED_BATCH", 49_000)
    assert f"a compressed {kind} states 50," in refusal(path, label_column="label")
    if not large:  # workers read batches without listing the file
        with pytest.raises(SourceError, match="a compressed record batch states"):
            open_source(str(path)).read(record)
