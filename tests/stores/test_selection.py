import numpy as np
import pyarrow.compute as pc
import pytest

from repa_pipe.errors import ConfigError, SampleIndexError
from repa_pipe.stores import AlignmentDataset, open_store
from repa_pipe.stores.manifest import Quarantined
from repa_pipe.stores.selection import digest_of_rows, read_indices, rows_of_classes

LABELS = np.array([0, 1, 2, 1], np.int32)


@pytest.fixture
def store(make_store):
    path, _ = make_store(quarantined=(Quarantined(index=17, key="0017.png", reason="truncated"),))
    with open_store(path) as opened:
        yield opened


@pytest.mark.parametrize(
    ("classes", "rows"),
    [("dog", [1, 3]), (1, [1, 3]), (np.int64(1), [1, 3]), (["cat", 2], [0, 2]), ("2", [2]), ([], [])],
)
def test_classes_are_selected_by_name_or_number(classes, rows):
    assert rows_of_classes(classes, ("cat", "dog", "owl"), LABELS).tolist() == rows


def test_a_name_that_looks_like_a_number_is_a_name():
    assert rows_of_classes("1", ("2", "0", "1"), LABELS).tolist() == [2]
    assert rows_of_classes(1, ("2", "0", "1"), LABELS).tolist() == [1, 3]


def test_classes_with_the_same_name_are_selected_together():
    assert rows_of_classes("crane", ("crane", "dog", "crane"), LABELS).tolist() == [0, 2]


@pytest.mark.parametrize("missing", ["dgo", 3, -1, "7"])
def test_an_unknown_class_is_refused_with_the_names_that_exist(missing):
    with pytest.raises(ConfigError, match=rf"no class {missing!r}: expected a number from 0 to 2, or a name.*dog"):
        rows_of_classes(missing, ("cat", "dog", "owl"), LABELS)


def test_conditions_are_combined(store):
    chosen = store.select(classes="dog", indices=slice(10, 40), where=pc.field("num_bytes") > 120)
    expected = [i for i in range(10, 40) if i % 3 == 1 and 100 + i > 120]
    assert chosen.indices.tolist() == expected
    assert len(chosen) == len(expected)
    assert store.select().indices.tolist() == list(range(50))
    assert repr(chosen).startswith("<Selection: 6 of <Store ")


def test_indices_become_a_set_in_ascending_order(store):
    mask = np.zeros(50, bool)
    mask[[3, 8]] = True
    assert store.select(indices=[8, 3]).indices.tolist() == store.select(indices=mask).indices.tolist() == [3, 8]
    assert store.select(indices=[-1]).indices.tolist() == [49]
    with pytest.raises(ConfigError, match="sample 8 is listed more than once"):
        store.select(indices=[8, 3, 8])
    with pytest.raises(SampleIndexError, match="found 50 to 50"):
        store.select(indices=[50])


def test_expressions_see_every_column_of_the_sample_index(store):
    found = store.select(where=pc.starts_with(pc.field("key"), "004") & (pc.field("index") != 41))
    assert found.indices.tolist() == [40, *range(42, 50)]


@pytest.mark.parametrize(
    ("where", "message"),
    [
        (pc.field("size") > 3, r"cannot be applied to the columns key \(string\), label \(int32\), num_bytes"),
        (pc.field("key") > 3, r"cannot be applied to the columns"),
        (lambda samples: samples, "where is a function: expected a pyarrow expression"),
        ("label == 3", "where is a str: expected a pyarrow expression"),
    ],
)
def test_other_conditions_are_refused_with_the_columns_that_exist(store, where, message):
    with pytest.raises(ConfigError, match=message):
        store.select(where=where)


def test_samples_of_a_selection_are_those_of_the_store(store):
    chosen = store.select(indices=[30, 5, 17])
    assert chosen[-1]["index"] == 30
    assert chosen[:1]["index"].tolist() == [5]
    assert [sample["index"] for sample in chosen] == [5, 30]  # 17 is quarantined
    with pytest.raises(SampleIndexError, match=r"in \[-3, 3\)"):
        chosen[3]


def test_a_selection_can_be_read(store):
    chosen = store.select(indices=[30, 5])
    np.testing.assert_array_equal(
        store.read("features/enc", chosen)["features/enc/tokens"], store[[5, 30]]["features/enc/tokens"]
    )


def test_batches_are_drawn_from_a_selection_without_quarantined_samples(store):
    chosen = store.select(classes=["owl", "cat"], indices=slice(0, 30))
    dataset = AlignmentDataset(chosen, encoders="enc", batch_size=4)
    expected = [i for i in range(30) if i % 3 in (0, 2) and i != 17]
    assert dataset.indices.tolist() == expected
    batches = list(dataset)
    assert {int(i) for batch in batches for i in batch.indices} <= set(expected)
    assert set(np.concatenate([batch.labels for batch in batches]).tolist()) == {0, 2}
    with pytest.raises(ConfigError, match="larger than the 19 selected samples"):
        AlignmentDataset(chosen, batch_size=20)


def test_digests_distinguish_selections(store):
    first, second = store.select(indices=[1, 2]), store.select(indices=[1, 3])
    assert first.digest == store.select(indices=[2, 1]).digest == digest_of_rows(np.array([1, 2]))
    assert first.digest != second.digest


def test_indices_are_read_from_text_and_npy_files(tmp_path):
    (tmp_path / "a.txt").write_text("3\n1\n")
    np.save(tmp_path / "b.npy", np.array([True, False]))
    assert read_indices(tmp_path / "a.txt").tolist() == [3, 1]
    assert read_indices(tmp_path / "b.npy").tolist() == [True, False]


@pytest.mark.parametrize(
    ("name", "content"), [("a.txt", b"1\nx\n"), ("a.txt", b"\xff"), ("a.npy", b"1\n"), ("b", None)]
)
def test_files_that_hold_no_indices_are_refused(tmp_path, name, content):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=rf"{name} cannot be read as sample indices .* one integer per line"):
        read_indices(tmp_path / name)


def test_pickled_objects_in_an_npy_file_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.array([object()]), allow_pickle=True)
    with pytest.raises(ConfigError, match="cannot be read as sample indices"):
        read_indices(tmp_path / "a.npy")
