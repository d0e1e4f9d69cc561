import pickle

import pytest

from repa_pipe.sources.block_cache import Block, BlockCache


def test_the_least_recently_used_group_is_evicted_first():
    read: list[Block] = []
    groups = BlockCache(2)
    for number in [0, 1, 0, 2, 0, 1]:
        assert groups.get(("a", number), lambda place: read.append(place) or place) == ("a", number)
    assert [number for _, number in read] == [0, 1, 2, 1]


def test_a_group_that_failed_is_read_again():
    def fail(place: Block) -> None:
        raise OSError("gone")

    groups = BlockCache(2)
    with pytest.raises(OSError, match="gone"):
        groups.get(("a", 0), fail)
    assert groups.get(("a", 0), lambda place: "there") == "there"


def test_pickled_copies_start_empty():
    groups = BlockCache(2)
    groups.get(("a", 0), lambda place: "mine")
    assert pickle.loads(pickle.dumps(groups)).get(("a", 0), lambda place: "its own") == "its own"
