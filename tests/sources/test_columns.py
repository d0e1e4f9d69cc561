"""Which columns of a table are read, as parquet, Arrow stream and Arrow file."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from repa_pipe.errors import BadImageError, SourceError
from repa_pipe.sources import SourceOptions, open_source, records_of

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
BYTES = [b"first", b"second", b"third"]
IMAGES = pa.array([{"bytes": data, "path": None} for data in BYTES], STRUCT)
FORMATS = ["parquet", "stream", "file"]


def write(folder: Path, table: pa.Table, kind: str, features: dict[str, object] | None = None, name: str = "a") -> str:
    if features is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    if kind == "parquet":
        pq.write_table(table, folder / f"{name}.parquet", row_group_size=2)
        return str(folder / f"{name}.parquet")
    path = str(folder / f"{name}.arrow")
    with (pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file)(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return path


def read(path: str, **options: object) -> tuple[list[bytes], list[int], tuple[str, ...]]:
    source = open_source(path, options=SourceOptions(**options))
    index = source.index()
    return [source.read(record) for record in records_of(index)], index["label"].to_pylist(), source.class_names


def refusal(path: str, **options: object) -> str:
    with pytest.raises(SourceError) as caught:
        read(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(params=FORMATS)
def kind(request):
    return request.param


@pytest.fixture
def cifar(tmp_path, kind):
    """The columns of CIFAR-100 on the Hugging Face Hub."""
    features = {
        "img": {"_type": "Image"},
        "fine_label": {"_type": "ClassLabel", "names": ["apple", "bear", "bee"]},
        "coarse_label": {"_type": "ClassLabel", "names": ["animal", "plant"]},
    }
    table = pa.table({"img": IMAGES, "fine_label": [2, 0, 1], "coarse_label": [0, 1, 0]})
    return write(tmp_path, table, kind, features)


def test_of_two_label_columns_one_has_to_be_chosen(cifar):
    message = refusal(cifar)
    assert (
        "several columns that could be the label (fine_label, coarse_label): choose one with --label-column" in message
    )
    assert read(cifar, label_column="fine_label") == (BYTES, [2, 0, 1], ("apple", "bear", "bee"))
    assert read(cifar, label_column="coarse_label") == (BYTES, [0, 1, 0], ("animal", "plant"))
    assert read(cifar, unlabeled=True) == (BYTES, [0, 0, 0], ("images",))


def test_the_only_declared_columns_precede_those_with_the_usual_names(tmp_path, kind):
    masks = pa.array([{"bytes": b"mask", "path": None}] * 3, STRUCT)
    features = {"photo": {"_type": "Image"}, "breed": {"_type": "ClassLabel", "names": ["a", "b", "c"]}}
    table = pa.table({"image": masks, "label": [9, 9, 9], "photo": IMAGES, "breed": [2, 0, 1]})
    assert read(write(tmp_path, table, kind, features)) == (BYTES, [2, 0, 1], ("a", "b", "c"))
    assert read(write(tmp_path, table, kind, features), label_column="label")[1] == [9, 9, 9]


def test_of_two_image_columns_one_has_to_be_chosen(tmp_path, kind):
    masks = pa.array([{"bytes": b"mask", "path": None}] * 3, STRUCT)
    path = write(tmp_path, pa.table({"photo": IMAGES, "mask": masks, "label": [0, 1, 2]}), kind)
    assert "several columns that could be the image (photo, mask): choose one with --image-column" in refusal(path)
    assert read(path, image_column="photo")[0] == BYTES
    assert read(path, image_column="mask")[0] == [b"mask"] * 3


def test_a_column_that_does_not_exist_is_refused_with_those_that_do(cifar):
    message = refusal(cifar, label_column="label")
    assert "has no column label (--label-column): expected one of its columns (img: struct<bytes: binary" in message
    assert "fine_label: int64, coarse_label: int64)" in message
    assert "has no column image (--image-column)" in refusal(cifar, image_column="image", unlabeled=True)


def test_a_column_of_sounds_is_not_an_image(tmp_path, kind):
    features = {"sound": {"_type": "Audio"}, "img": {"_type": "Image"}, "label": {"_type": "Value", "dtype": "int64"}}
    table = pa.table({"sound": IMAGES, "img": IMAGES, "label": [0, 1, 2]})
    assert read(write(tmp_path, table, kind, features))[0] == BYTES
    del features["img"]
    assert "has no images" in refusal(write(tmp_path, table.drop_columns("img"), kind, features))


@pytest.mark.parametrize(
    "images",
    [pa.array(BYTES), pa.array(BYTES, pa.large_binary()), pa.array([{"bytes": data} for data in BYTES])],
    ids=["binary", "large_binary", "struct without path"],
)
def test_images_may_be_plain_or_large_bytes(tmp_path, kind, images):
    assert read(write(tmp_path, pa.table({"jpg": images, "cls": pa.array([1, 0, 1], pa.uint8())}), kind)) == (
        BYTES,
        [1, 0, 1],
        ("0", "1"),
    )


@pytest.mark.parametrize(
    ("images", "found"),
    [
        (pa.array([[image] for image in IMAGES.to_pylist()]), r"list<\w+: struct<bytes"),
        (pa.array(["a.jpg", "b.jpg", "c.jpg"]), "string"),
        (pa.array([{"path": "a.jpg"}] * 3), "struct<path: string>"),
        (pa.array(BYTES).dictionary_encode(), "dictionary<values=binary"),
        (pa.array([{"image": image} for image in IMAGES.to_pylist()]), "struct<image: struct<bytes"),
    ],
    ids=["list", "paths", "struct without bytes", "dictionary", "nested"],
)
def test_columns_that_hold_no_images_are_refused_with_their_type(tmp_path, kind, images, found):
    path = write(tmp_path, pa.table({"pictures": images, "label": [0, 1, 2]}), kind)
    with pytest.raises(
        SourceError, match=rf"has no images among its columns \(pictures: {found}.*: expected one image"
    ):
        read(path)
    with pytest.raises(SourceError, match=rf"column pictures of .* is {found}.*: expected one image .*--image-column"):
        read(path, image_column="pictures")


def test_text_labels_are_mapped_in_sorted_order_if_they_are_chosen(tmp_path, kind):
    for name, labels in {"a": ["dog", "ant", "dog"], "b": ["cat", "dog", "bee"]}.items():
        path = write(tmp_path, pa.table({"image": IMAGES, "label": labels}), kind, name=name)
    folder = str(Path(path).parent)
    assert "column label of" in refusal(folder)
    assert "expected class numbers; use text as class names with --label-column label, or" in refusal(folder)
    assert read(folder, label_column="label") == (BYTES * 2, [3, 0, 3, 2, 3, 1], ("ant", "bee", "cat", "dog"))


def test_numbers_as_text_are_sorted_as_text_with_a_warning(tmp_path, kind, caplog):
    path = write(tmp_path, pa.table({"image": IMAGES, "label": ["2", "0", "10"]}), kind)
    assert read(path, label_column="label") == (BYTES, [2, 0, 1], ("0", "10", "2"))
    (record,) = (record for record in caplog.records if record.levelname == "WARNING")
    assert "labels are numbers as text, and classes are sorted as text (0, 10, 2, ...): store int" in record.message


def test_dictionary_encoded_labels_are_read_by_their_values(tmp_path, kind):
    labels = pa.chunked_array([["dog", "cat"], ["ant"]]).dictionary_encode()
    table = pa.table({"image": IMAGES, "label": labels})
    assert read(write(tmp_path, table, kind), label_column="label") == (BYTES, [2, 1, 0], ("ant", "cat", "dog"))
    table = pa.table({"image": IMAGES, "label": pa.array([7, 5, 7]).dictionary_encode()})
    assert read(write(tmp_path, table, kind))[1] == [7, 5, 7]


@pytest.mark.parametrize("labels", [[0.5, 1.0, 2.0], [True, False, True], [[1], [2], [3]], [None, None, None]])
def test_labels_of_other_types_are_refused(tmp_path, kind, labels):
    path = write(tmp_path, pa.table({"image": IMAGES, "label": labels}), kind)
    message = refusal(path)
    assert "column label of" in message
    assert "expected class numbers; choose another column with --label-column, or make all images one" in message
    assert "expected class numbers" in refusal(path, label_column="label")
    assert read(path, unlabeled=True)[1] == [0, 0, 0]


def test_a_table_without_labels_is_one_class_only_with_the_flag(tmp_path, kind):
    path = write(tmp_path, pa.table({"image": IMAGES, "caption": ["a", "b", "c"]}), kind)
    assert "use text as class names with --label-column caption, or make all images one class with --unl" in refusal(
        path
    )
    assert read(path, unlabeled=True) == (BYTES, [0, 0, 0], ("images",))
    path = write(tmp_path, pa.table({"image": IMAGES}), kind)
    message = refusal(path)
    assert message.endswith("path: string>): make all images one class with --unlabeled")
    assert read(path, unlabeled=True) == (BYTES, [0, 0, 0], ("images",))


@pytest.mark.parametrize(("labels", "message"), [([0, None, 1], "has no label in row 1"), ([0, -1, 1], "has label -1")])
def test_rows_without_label_are_refused_with_the_flag_that_reads_them(tmp_path, kind, labels, message):
    path = write(tmp_path, pa.table({"image": IMAGES, "label": labels}), kind)
    assert message in refusal(path)
    assert "--unlabeled" in refusal(path)
    assert read(path, unlabeled=True)[1] == [0, 0, 0]


def test_images_that_are_not_embedded_are_refused_if_all_are_and_bad_if_some_are(tmp_path, kind):
    rows = [{"bytes": None, "path": "/data/n1.jpg"}, None, {"bytes": None, "path": None}]
    path = write(tmp_path, pa.table({"image": pa.array(rows, STRUCT), "label": [0, 1, 2]}), kind)
    assert "holds no image bytes, only paths such as /data/n1.jpg: write it again with embedded images" in refusal(path)
    rows[1] = {"bytes": b"data", "path": None}
    source = open_source(write(tmp_path, pa.table({"image": pa.array(rows, STRUCT), "label": [0, 1, 2]}), kind))
    first, second, third = records_of(source.index())
    assert source.read(second) == b"data"
    with pytest.raises(BadImageError, match=r"its row holds no image bytes, only the path /data/n1\.jpg$"):
        source.read(first)
    with pytest.raises(BadImageError, match=r"its row holds no image bytes$"):
        source.read(third)


def test_two_columns_of_the_same_name_are_refused(tmp_path):
    table = pa.table([IMAGES, pa.array([0, 1, 2]), pa.array([1, 2, 3])], names=["image", "label", "label"])
    assert "has several columns called label: rename all but one" in refusal(write(tmp_path, table, "stream"))


def test_files_with_different_columns_are_refused_together(tmp_path, kind):
    write(tmp_path, pa.table({"image": IMAGES, "fine": [0, 1, 2]}), kind, name="a")
    write(tmp_path, pa.table({"image": IMAGES, "coarse": [0, 1, 2]}), kind, name="b")
    assert "have different columns (image, fine and image, coarse): choose the same with --im" in refusal(str(tmp_path))


def test_text_that_is_not_utf8_is_refused(tmp_path, kind):
    buffers = [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0\3\0\0\0"), pa.py_buffer(b"a\xffb")]
    text = pa.Array.from_buffers(pa.string(), 3, buffers)
    path = write(tmp_path, pa.table({"image": IMAGES, "label": text}), kind)
    assert "damaged" in refusal(path, label_column="label")


def test_row_numbers_of_pandas_are_not_labels(tmp_path, kind):
    table = pa.table({"image": IMAGES, "__index_level_0__": [5, 6, 7]})
    assert "has no class numbers" in refusal(write(tmp_path, table, kind))
    table = table.append_column("class", [[1, 0, 2]])
    assert read(write(tmp_path, table, kind))[1] == [1, 0, 2]


def test_the_columns_that_are_read_are_logged(tmp_path, kind, caplog):
    caplog.set_level("INFO")
    path = write(tmp_path, pa.table({"jpg": IMAGES, "class": [0, 1, 2]}), kind)
    read(path)
    assert f"{path}: images from column jpg, labels from column class" in caplog.messages
    read(path, unlabeled=True)
    assert f"{path}: images from column jpg, labels ignored" in caplog.messages


IMAGE_COLUMNS = {
    "struct": IMAGES,
    "binary": pa.array(BYTES),
    "large": pa.array(BYTES, pa.large_binary()),
}
NUMBER_COLUMNS = {
    **{kind: pa.array([2, 0, 1], kind) for kind in ("int8", "uint16", "int32", "uint64")},
    "dictionary": pa.array([2, 0, 1]).dictionary_encode(),
}
OTHER_COLUMNS = {
    "text": pa.array(["x", "y", "x"]),
    "float": pa.array([0.5, 1.5, 2.5]),
    "bool": pa.array([True, False, True]),
    "null": pa.nulls(3),
    "list": pa.array([[1], [2], [3]]),
    "images": pa.array([[b"x"], [b"y"], [b"z"]]),
    "nested": pa.array([{"label": 1}] * 3),
    "time": pa.array([1, 2, 3], pa.timestamp("s")),
}
COLUMNS = IMAGE_COLUMNS | NUMBER_COLUMNS | OTHER_COLUMNS


def expected_column(names: dict[str, str], usual: str, suitable: dict[str, pa.Array]) -> str | None:
    """Return the column that has to be read, or None if the table has to be refused."""
    if usual in names:
        return usual if names[usual] in suitable else None
    found = [name for name, kind in names.items() if kind in suitable]
    return found[0] if len(found) == 1 else None


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    names=st.dictionaries(
        st.sampled_from(["image", "label", "img", "id", "a.b", "bytes", "ß", "class", " "]),
        st.sampled_from(sorted(COLUMNS)),
        min_size=1,
        max_size=6,
    ),
    kind=st.sampled_from(FORMATS),
)
def test_a_table_is_read_to_the_right_labels_or_refused_with_a_flag(tmp_path, names, kind):
    path = write(tmp_path, pa.table({name: COLUMNS[column] for name, column in names.items()}), kind)
    image = expected_column(names, "image", IMAGE_COLUMNS)
    label = expected_column(names, "label", NUMBER_COLUMNS)
    if image is None:
        message = refusal(path)
        assert "--image-column" in message or not set(names.values()) & set(IMAGE_COLUMNS)
    elif label is None:
        message = refusal(path)
        assert "--label-column" in message or "--unlabeled" in message
        assert read(path, unlabeled=True)[:2] == (BYTES, [0, 0, 0])
    else:
        assert read(path)[:2] == (BYTES, [2, 0, 1])
    chosen = {"image_column": image, "label_column": label} if image and label else {}
    assert not chosen or read(path, **chosen)[:2] == (BYTES, [2, 0, 1])
