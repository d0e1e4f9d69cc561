import sys
import threading
from concurrent.futures import Future
from types import SimpleNamespace

import pytest

from repa_pipe.config import EncodeConfig
from repa_pipe.errors import StoreError
from repa_pipe.pipeline import encode
from repa_pipe.pipeline.encoding import monitor as encode_monitor
from repa_pipe.pipeline.encoding.monitor import Monitor
from repa_pipe.pipeline.encoding.shard import ShardResult


class Bar:
    def __init__(self):
        self.count, self.words = 0, ""

    def update(self, count=1):
        self.count += count

    def note(self, text):
        self.words = text


@pytest.fixture
def bar():
    return Bar()


@pytest.fixture
def monitor(bar, make_store):
    from repa_pipe.stores import open_store

    path, _ = make_store()
    return Monitor(EncodeConfig(source="s", store=str(path), vae="new"), open_store(path), bar)


def result_of(shard, worker, seconds, busy, quarantined=0):
    return ShardResult(shard, 16, quarantined, worker, seconds, busy)


def test_every_actor_has_its_rate_and_all_share_one_business(monitor, bar, monkeypatch):
    clock = iter([10.0, 20.0, 30.0])
    monkeypatch.setattr(encode_monitor, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monitor.shard(result_of(0, "a", 8.0, 8.0))  # a: 16 images from 2 to 10 s
    monitor.shard(result_of(1, "b", 4.0, 3.0, quarantined=2))  # b: 16 images from 16 to 20 s
    monitor.shard(result_of(2, "a", 20.0, 10.0))  # a: 32 images from 2 to 30 s
    assert monitor.rates == pytest.approx([32 / 28, 16 / 4])
    assert monitor.busy_share == pytest.approx((8 + 3 + 10) / (28 + 4))
    assert bar.words == "2 actors at 1.1 to 4.0 img/s, models busy 66 %, 2 broken"


def test_too_many_broken_images_end_the_run(monitor):
    monitor.shard(result_of(0, "a", 1.0, 1.0, quarantined=10))
    with pytest.raises(StoreError, match=r"11 images are broken, --max-bad 0.001 allows 10"):
        monitor.shard(result_of(1, "a", 1.0, 1.0, quarantined=1))


def test_a_shard_that_hangs_here_is_reported_once(monitor, capsys):
    hung: Future[ShardResult] = Future()
    threading.Timer(1.7, hung.set_result, [result_of(0, "here", 1.7, 0.1)]).start()
    assert encode.drive([(0, ("latents/new",))], lambda *_: hung, monitor, shard_timeout=0.2) == []
    errors = capsys.readouterr().err
    assert errors.count("shard 0 has not finished within --shard-timeout 0.2 s") == 1
    assert "--ray" in errors


def test_lines_of_a_log_keep_coming_while_nothing_is_finished(monkeypatch, capsys):
    from repa_pipe.pipeline.runtime import progress

    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    with progress.progress("encode", 10, "images") as bar:
        bar.note("models busy 97 %")
        bar.update(0)
        bar.update(4)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "encode: 0 of 10 images, 0.00 images/s, no rate yet, models busy 97 %"
    assert lines[1].startswith("encode: 4 of 10 images")
