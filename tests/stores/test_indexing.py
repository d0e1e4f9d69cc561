import numpy as np
import pyarrow as pa
import pytest
import torch

from repa_pipe.errors import RepaPipeError, SampleIndexError
from repa_pipe.stores.indexing import as_names, as_rows, as_single

MASK = np.arange(10) % 3 == 0


@pytest.mark.parametrize(
    "indices",
    [
        slice(None),
        slice(2, 7, 2),
        slice(None, None, -1),
        slice(-3, None),
        slice(20, 30),
        range(3),
        [3, 1, 1],
        [-1, 0, -10],
        np.array([2, 5], np.uint8),
        MASK,
        MASK.tolist(),
        torch.tensor([4, -4]),
        pa.array([7, 8]),
    ],
    ids=str,
)
def test_rows_are_those_that_numpy_selects(indices):
    expected = np.arange(10)[indices if isinstance(indices, slice) else np.asarray(indices)]
    found = as_rows(indices, 10)
    assert found.dtype == np.int64
    assert found.tolist() == expected.tolist()


@pytest.mark.parametrize("indices", [[], (), np.array([]), slice(5, 5)], ids=repr)
def test_there_may_be_no_indices(indices):
    assert as_rows(indices, 10).tolist() == []


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([10], r"must be in \[-10, 10\), found 10 to 10"),
        ([0, -11], r"found -11 to 0"),
        (3, r"integers or booleans, found 3: pass \[3\]"),
        (0.5, r"found 0.5 \(shape \(\), float64\)"),
        ([0.5], r"found \[0.5\] \(shape \(1,\), float64\)"),
        ("tokens", r"found 'tokens'"),
        (None, r"found None"),
        ([[1, 2]], r"shape \(1, 2\)"),
        (MASK[:9], r"one value per sample \(10\), found 9"),
    ],
)
def test_other_indices_are_refused_and_the_message_shows_them(indices, message):
    with pytest.raises(SampleIndexError, match=message) as refused:
        as_rows(indices, 10)
    assert isinstance(refused.value, IndexError)
    assert isinstance(refused.value, RepaPipeError)


@pytest.mark.parametrize("index", [3, np.int64(3), np.array(3), torch.tensor(3)], ids=repr)
def test_integers_and_arrays_without_dimensions_are_single_samples(index):
    assert as_single(index) == 3


@pytest.mark.parametrize(
    "index",
    [True, np.True_, 3.0, torch.tensor(3.0), np.array([3]), torch.tensor([3]), [3], slice(3), "3", None],
    ids=repr,
)
def test_other_indices_are_not_single_samples(index):
    assert as_single(index) is None


def test_a_string_is_one_name():
    assert as_names("enc") == ("enc",)
    assert as_names(["a", "b"]) == ("a", "b")
