"""Reading batches ahead by threads."""

import threading
import time
from itertools import islice

import pytest

from repa_pipe.errors import ConfigError
from repa_pipe.stores import AlignmentDataset
from repa_pipe.stores.read_ahead import read_ahead


def plan(step):
    return (step,)


def test_two_batches_are_read_at_the_same_time_and_yielded_in_order():
    both = threading.Barrier(2)

    def read(step):
        both.wait(timeout=10)
        time.sleep(0.01 * (step % 2 == 0))
        return step

    batches = read_ahead(plan, read, range(5, 100), 4)
    assert list(islice(batches, 12)) == list(range(5, 17))
    both.abort()
    batches.close()


@pytest.mark.parametrize("ahead", [1, 2, 5])
def test_no_more_batches_are_read_than_asked_for(ahead):
    read = []
    batches = read_ahead(plan, lambda step: read.append(step) or step, range(100), ahead)
    next(batches)
    time.sleep(0.1)
    assert len(read) <= 1 + ahead + 2
    batches.close()


@pytest.mark.parametrize("number", [0, 1, 2, 7])
def test_nothing_is_read_after_the_last_step(number):
    read = []
    assert list(read_ahead(plan, lambda step: read.append(step) or step, range(3, 3 + number), 4)) == sorted(read)
    assert len(read) == number


def test_steps_are_planned_one_at_a_time():
    planning = threading.Lock()

    def slow_plan(step):
        assert planning.acquire(blocking=False)
        time.sleep(0.005)
        planning.release()
        return (step,)

    batches = read_ahead(slow_plan, lambda step: step, range(100), 4)
    assert list(islice(batches, 10)) == list(range(10))
    batches.close()


def test_an_error_ends_the_batches_at_its_step():
    def read(step):
        if step == 3:
            raise OSError("gone")
        return step

    batches = read_ahead(plan, read, range(100), 4)
    assert list(islice(batches, 3)) == [0, 1, 2]
    with pytest.raises(OSError, match="gone"):
        next(batches)


def test_at_least_one_batch_is_read_ahead(make_store):
    with pytest.raises(ConfigError, match="prefetch is 0: expected at least 1 batch"):
        AlignmentDataset(make_store()[0], batch_size=8, prefetch=0)
