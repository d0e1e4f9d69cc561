import sys
import threading
from concurrent.futures import Future
from types import SimpleNamespace

import pytest

from repa_pipe.config import EncodeConfig
from repa_pipe.errors import StoreError
from repa_pipe.pipeline.encoding import monitor as monitor_module
from repa_pipe.pipeline.encoding.inline import drive
from repa_pipe.pipeline.encoding.monitor import EncodeMonitor
from repa_pipe.pipeline.encoding.shard import ShardResult
from repa_pipe.pipeline.encoding.work import ShardTask
from repa_pipe.pipeline.runtime import progress as progress_module
from repa_pipe.pipeline.runtime.progress import progress
from repa_pipe.stores import open_store


class Bar:
    def __init__(self):
        self.count, self.text = 0, ""

    def update(self, count=1):
        self.count += count

    def note(self, text):
        self.text = text


@pytest.fixture
def bar():
    return Bar()


@pytest.fixture
def monitor(bar, make_store):
    path, _ = make_store()
    with open_store(path) as store:
        yield EncodeMonitor(EncodeConfig(source="s", store=str(path), vae="new"), store, ["latents/new"], bar)


def result_of(shard, worker, seconds, busy, quarantined=0):
    groups = {"latents/new": busy / 4, "features/new": busy * 3 / 4}
    return ShardResult(shard, 16, quarantined, worker, seconds, groups, {"models": busy, "images": 0.8, "writing": 0.4})


def test_rates_are_per_actor_and_the_busy_fraction_is_over_all_actors(monitor, bar, monkeypatch):
    clock = iter([10.0, 20.0, 30.0])
    monkeypatch.setattr(monitor_module, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monitor.on_shard(result_of(0, "a", 8.0, 8.0))  # a: 16 images from 2 to 10 s
    monitor.on_shard(result_of(1, "b", 4.0, 3.0, quarantined=2))  # b: 16 images from 16 to 20 s
    monitor.on_shard(result_of(2, "a", 20.0, 10.0))  # a: 32 images from 2 to 30 s
    assert monitor.rates == pytest.approx([32 / 28, 16 / 4])
    assert monitor.busy_fraction == pytest.approx((8 + 3 + 10) / (28 + 4))
    assert bar.text == "2 actors at 1.1 to 4.0 images/s, models busy 66 %, 2 broken"
    assert monitor.busy_fractions == pytest.approx({"features/new": 0.75 * 21 / 32, "latents/new": 0.25 * 21 / 32})
    assert monitor.waiting_fractions == pytest.approx({"images": 3 * 0.8 / 32, "writing": 3 * 0.4 / 32})
    assert monitor.utilization() == (
        "models busy 66 % of the time (features/new 49 %, latents/new 16 %); waiting for images 8 %, for writing 4 %"
    )


def test_nothing_is_said_about_the_models_before_the_first_commit(monitor):
    assert monitor.busy_fraction is None
    assert (monitor.busy_fractions, monitor.waiting_fractions, monitor.utilization()) == ({}, {}, "")


def test_too_many_broken_images_end_the_run(monitor):
    monitor.on_shard(result_of(0, "a", 1.0, 1.0, quarantined=10))
    with pytest.raises(StoreError, match=r"11 images are broken, --max-bad 0.001 tolerates 10"):
        monitor.on_shard(result_of(1, "a", 1.0, 1.0, quarantined=1))


def test_a_shard_that_hangs_in_this_process_is_reported_once(monitor, caplog):
    hung: Future[ShardResult] = Future()
    threading.Timer(1.7, hung.set_result, [result_of(0, "here", 1.7, 0.1)]).start()
    assert drive([ShardTask(0, ("latents/new",))], lambda *_: hung, monitor, shard_timeout=0.2) == []
    assert caplog.text.count("shard 0 has not finished within --shard-timeout 0.2 s") == 1
    assert "--ray" in caplog.text


def test_progress_lines_appear_while_nothing_is_finished(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    monkeypatch.setattr(progress_module, "LINE_EVERY_S", 0.0)
    with progress("encode", 10, "images") as bar:
        bar.note("models busy 97 %")
        bar.update(0)
        bar.update(4)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "encode: 0 of 10 images, no rate yet, models busy 97 %"
    assert lines[1].startswith("encode: 4 of 10 images")
