import pickle

import pytest

from repa_pipe.sources.row_groups import RowGroup, RowGroups


def test_the_group_that_was_used_longest_ago_goes_first():
    read: list[RowGroup] = []
    groups = RowGroups(2)
    for number in [0, 1, 0, 2, 0, 1]:
        assert groups.get(("a", number), lambda place: read.append(place) or place) == ("a", number)
    assert [number for _, number in read] == [0, 1, 2, 1]


def test_group_that_failed_is_read_again():
    def fail(place: RowGroup) -> None:
        raise OSError("gone")

    groups = RowGroups(2)
    with pytest.raises(OSError, match="gone"):
        groups.get(("a", 0), fail)
    assert groups.get(("a", 0), lambda place: "there") == "there"


def test_copies_in_other_processes_start_empty():
    groups = RowGroups(2)
    groups.get(("a", 0), lambda place: "mine")
    assert pickle.loads(pickle.dumps(groups)).get(("a", 0), lambda place: "its own") == "its own"
