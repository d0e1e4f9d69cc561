from types import SimpleNamespace

import pytest
import torch

from repa_pipe.pipeline.encoding import activity as activity_module
from repa_pipe.pipeline.encoding.activity import IMAGES, MODELS, WRITING, Activity, ModelClock


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(activity_module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def test_time_belongs_to_the_models_or_is_divided_among_what_shards_wait_for(clock):
    activity = Activity()
    clock.now += 50  # nothing is in flight
    with activity.waiting_for(IMAGES):
        clock.now += 1  # one shard waits for images
        with activity.waiting_for(MODELS):
            clock.now += 10  # the other one is in the models
        with activity.waiting_for(WRITING):
            clock.now += 4  # the other one is written
        with activity.waiting_for(IMAGES):
            clock.now += 3
    clock.now += 7
    assert activity.take() == pytest.approx({IMAGES: 1 + 2 + 3, MODELS: 10, WRITING: 2})
    assert activity.take() == {}


def test_a_part_that_is_still_waited_for_is_counted_up_to_the_call(clock):
    activity = Activity()
    with activity.waiting_for(MODELS), activity.waiting_for(MODELS):
        clock.now += 2
        assert activity.take() == {MODELS: 2}
        clock.now += 3
    assert activity.take() == {MODELS: 3}


def test_an_error_ends_the_wait(clock):
    activity = Activity()
    with pytest.raises(ValueError, match="x"), activity.waiting_for(IMAGES):
        raise ValueError("x")
    clock.now += 1
    assert activity.take().get(IMAGES, 0) == 0


def test_a_clock_on_a_cpu_measures_its_block(clock):
    with ModelClock(torch.device("cpu")) as measured:
        clock.now += 1.5
    clock.now += 9
    assert measured.seconds() == 1.5


def test_a_clock_on_a_gpu_waits_for_the_device_only_when_it_is_read(monkeypatch):
    calls, streams = [], []

    class Event:
        """A CUDA event of a device that reaches it at 250 ms per event."""

        created = 0

        def __init__(self, enable_timing):
            assert enable_timing
            Event.created += 1
            self.reached_ms, self.done = 250.0 * Event.created, False

        def record(self, stream):
            streams.append(stream)

        def synchronize(self):
            calls.append("synchronize")
            self.done = True

        def elapsed_time(self, end):
            assert end.done
            return end.reached_ms - self.reached_ms

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    with ModelClock(torch.device("cuda:1")) as measured:
        pass
    assert (calls, streams) == ([], ["stream of cuda:1"] * 2)
    assert measured.seconds() == 0.25
    assert calls == ["synchronize"]
