"""Sets of samples."""

import numpy as np
import pytest

from repa_pipe.stores import rows
from repa_pipe.stores.rows import Rows
from repa_pipe.stores.selection import digest_of_rows

TOTAL = 50


@pytest.mark.parametrize("excluded", [[], [0], [49], [0, 1, 2, 20, 48, 49], list(range(49))])
@pytest.mark.parametrize("chosen", [None, [0, 1, 5, 20, 21, 49]])
def test_rows_are_those_of_an_array(excluded, chosen, monkeypatch):
    monkeypatch.setattr(rows, "BLOCK", 7)
    expected = np.array([row for row in (range(TOTAL) if chosen is None else chosen) if row not in excluded])
    found = Rows(TOTAL, np.array(excluded, dtype=np.int64), None if chosen is None else np.array(chosen))
    assert len(found) == len(expected)
    np.testing.assert_array_equal(found.array(), expected)
    order = np.random.default_rng(0).permutation(len(expected))
    np.testing.assert_array_equal(found.take(order), expected[order])
    assert found.digest == digest_of_rows(expected.astype(np.int64))
