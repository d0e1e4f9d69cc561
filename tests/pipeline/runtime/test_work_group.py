"""Ranks that divide tasks, as threads with one store; `tests/pipeline/test_sample.py` has real ones."""

import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from torch.distributed import HashStore

from repa_pipe.errors import RankError
from repa_pipe.pipeline.runtime import work_group as module
from repa_pipe.pipeline.runtime.distributed import DistributedContext
from repa_pipe.pipeline.runtime.work_group import work_group


@pytest.fixture
def on_ranks(monkeypatch):
    """Run a function of its work group on several ranks; return the results or errors of all."""
    here = threading.local()
    monkeypatch.setattr(module, "ranks_of_environment", lambda: here.ranks)

    def run(*functions):
        store = HashStore()
        monkeypatch.setattr(module, "_connect", lambda ranks: store)
        monkeypatch.setattr(module, "_groups", itertools.repeat(0))

        def on_rank(rank):
            here.ranks = DistributedContext(rank, len(functions))
            try:
                with work_group(lambda: False) as group:
                    found = functions[rank](group)
                run.left[rank] = time.monotonic()
                return found
            except BaseException as error:
                return error

        with ThreadPoolExecutor(len(functions)) as pool:
            return list(pool.map(on_rank, range(len(functions))))

    run.left = {}
    return run


def test_each_task_goes_to_one_rank_and_slow_ranks_take_fewer(on_ranks):
    def take(pause):
        def run(group):
            taken = []
            for task in group.divide(list("abcdefghijklmnop")):
                taken.append(task)
                time.sleep(pause)
            return taken

        return run

    slow, fast = on_ranks(take(0.2), take(0.02))
    assert sorted(slow + fast) == list("abcdefghijklmnop")
    assert len(slow) < len(fast)


def test_what_the_first_rank_finds_is_shared(on_ranks):
    found = on_ranks(*[lambda group, rank=rank: group.share(lambda: [rank, "x"]) for rank in range(3)])
    assert found == [[0, "x"]] * 3


def test_the_first_rank_shows_the_work_of_all_and_waits_for_it(on_ranks, capfd):
    def work(pause):
        def run(group):
            with group.progress("sample", 12, "images", done=2) as add:
                time.sleep(pause)
                add(5)
            return time.monotonic()

        return run

    first, second = on_ranks(work(0), work(0.5))
    assert abs(first - second) < 0.5
    assert "sample: 12 of 12 images" in capfd.readouterr().err


def test_no_rank_leaves_before_the_others_are_done(on_ranks):
    def late(group):
        time.sleep(0.5)
        return time.monotonic()

    end, _ = on_ranks(late, lambda group: None)
    assert on_ranks.left[1] >= end


def test_a_rank_that_fails_ends_the_others_which_name_it(on_ranks):
    def fail(group):
        raise ValueError("no memory\nat all")

    first, second, third = on_ranks(lambda group: group.share(lambda: time.sleep(0.1)), fail, lambda group: None)
    assert isinstance(second, ValueError)
    for error in (first, third):
        assert isinstance(error, RankError)
        assert str(error).startswith("rank 1 of 3 ended with an error (ValueError: no memory): ")


def test_a_rank_that_is_stopped_stops_the_others(on_ranks):
    def stop(group):
        raise KeyboardInterrupt

    assert all(isinstance(error, KeyboardInterrupt) for error in on_ranks(lambda group: None, stop, lambda group: None))


@pytest.mark.parametrize("lost", [0, 1])
def test_a_rank_that_falls_silent_is_named(on_ranks, monkeypatch, lost):
    monkeypatch.setattr(module, "SILENCE_S", 0.5)
    monkeypatch.setattr(module, "ALIVE_EVERY_S", 0.1)
    ended = threading.Event()

    def be_silent(group):
        group.count_up = lambda: None
        ended.wait(10)
        raise ValueError("killed")

    def wait(group):
        try:
            while True:
                group.check()
                time.sleep(0.05)
        finally:
            ended.set()

    functions = [wait, wait]
    functions[lost] = be_silent
    error = on_ranks(*functions)[1 - lost]
    assert isinstance(error, RankError)
    assert f"rank {lost} of 2 has given no sign of life for 0.5 s" in str(error)


def test_one_process_needs_no_other(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with work_group(lambda: False) as group:
        assert group.share(lambda: 7) == 7
        assert list(group.divide([3, 4])) == [3, 4]
    with pytest.raises(KeyboardInterrupt), work_group(lambda: True) as group:
        list(group.divide([3]))
