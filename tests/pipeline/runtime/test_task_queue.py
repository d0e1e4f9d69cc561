import pytest

from repa_pipe.errors import ConfigError, SourceError
from repa_pipe.pipeline.runtime.task_queue import TaskQueue

ERROR = SourceError("gone\nlong story")


@pytest.fixture
def queue():
    """Three tasks with three tries each; a ConfigError is fatal."""
    return TaskQueue("abc", 3, lambda error: isinstance(error, ConfigError))


def tasks_of(queue):
    """Take all tasks that a busy worker may receive."""
    found = []
    while entry := queue.take(worker_is_idle=False):
        found.append(entry)
    return found


def test_tasks_are_taken_in_order(queue):
    assert len(queue) == 3
    assert [(entry.task, entry.tried) for entry in tasks_of(queue)] == [("a", 1), ("b", 1), ("c", 1)]
    assert len(queue) == 0
    assert queue.take(worker_is_idle=True) is None


def test_a_failed_task_is_retried_after_the_waiting_ones(queue):
    queue.fail(queue.take(worker_is_idle=True), ERROR)
    assert [(entry.task, entry.tried) for entry in tasks_of(queue)] == [("b", 1), ("c", 1), ("a", 2)]
    assert queue.failures == []


def test_only_an_idle_worker_receives_a_last_try(queue):
    first = queue.take(worker_is_idle=True)
    queue.fail(first, ERROR)
    second = tasks_of(queue)[-1]
    queue.fail(second, ERROR)
    assert len(queue) == 1
    assert queue.take(worker_is_idle=False) is None
    last = queue.take(worker_is_idle=True)
    assert (last.task, last.tried) == ("a", 3)
    assert [queue.is_last_try(entry) for entry in (first, second, last)] == [False, False, True]


def test_waiting_tasks_come_before_last_tries():
    queue = TaskQueue("ab", 2, lambda error: False)
    queue.fail(queue.take(worker_is_idle=True), ERROR)
    assert [queue.take(worker_is_idle=True).task for _ in range(2)] == ["b", "a"]


def test_a_task_that_fails_in_every_try_is_recorded(queue):
    entries = tasks_of(queue)
    for _ in range(3):
        queue.fail(entries[0], ERROR)
        entries = [queue.take(worker_is_idle=True)]
    assert entries == [None]
    (failure,) = queue.failures
    assert (failure.task, failure.error, failure.cause) == ("a", ERROR, "SourceError: gone")


def test_an_interrupted_task_comes_first_and_keeps_its_tries(queue):
    entry = queue.take(worker_is_idle=True)
    queue.put_back(entry)
    assert tasks_of(queue)[0] == entry


def test_a_fatal_error_is_raised(queue):
    error = ConfigError("no such device")
    with pytest.raises(ConfigError, match="no such device"):
        queue.fail(queue.take(worker_is_idle=True), error)
    assert queue.failures == []
