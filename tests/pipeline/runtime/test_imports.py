import gc
import weakref

import pytest

from repa_pipe.pipeline.runtime.imports import quick_imports


class Node:
    def __init__(self):
        self.itself = self


def test_imports_are_not_interrupted_by_searches_and_their_objects_are_old_afterwards():
    assert gc.isenabled()
    with quick_imports():
        assert not gc.isenabled()
        made = [[] for _ in range(2000)]
        assert gc.get_count()[0] >= 2000
    assert gc.isenabled()
    assert {id(each) for each in gc.get_objects(generation=2)}.issuperset(map(id, made))


def test_garbage_of_the_process_can_still_be_collected():
    before, frozen = Node(), gc.get_freeze_count()
    reference = weakref.ref(before)
    with quick_imports():
        pass
    del before
    gc.collect()
    assert reference() is None
    assert gc.get_freeze_count() == frozen


def test_a_process_without_collection_keeps_it_off():
    gc.disable()
    try:
        with quick_imports():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_collection_is_on_again_after_an_error():
    with pytest.raises(ImportError), quick_imports():
        raise ImportError
    assert gc.isenabled()
