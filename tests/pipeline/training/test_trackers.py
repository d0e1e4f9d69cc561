"""TensorBoard and Weights & Biases get the same values as metrics.parquet."""

import importlib.util
import json
import re
import struct
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from repa_pipe.errors import ConfigError
from repa_pipe.pipeline import train
from repa_pipe.pipeline.artifacts.metrics_log import read_metrics
from repa_pipe.pipeline.artifacts.run_folder import RunFolder
from repa_pipe.pipeline.training.trackers import wandb as wandb_tracker
from repa_pipe.pipeline.training.trackers.opening import open_tracker

FAKE_WANDB = """
import json, pathlib
LOG = pathlib.Path(__file__).with_name("log.json")
class Image:
    def __init__(self, array):
        self.shape = array.shape
class Run:
    def __init__(self, options):
        self.calls = [{name: str(value) for name, value in options.items()}]
    def log(self, values, step):
        self.calls.append([step, {name: getattr(value, "shape", value) for name, value in values.items()}])
    def finish(self):
        LOG.write_text(json.dumps((json.loads(LOG.read_text()) if LOG.exists() else []) + [self.calls]))
class Settings:
    def __init__(self, init_timeout):
        assert init_timeout == 20
def init(settings, **options):
    return Run(options)
"""


@pytest.fixture
def wandb_log(tmp_path, monkeypatch):
    folder = tmp_path / "packages"
    folder.mkdir()
    (folder / "wandb.py").write_text(FAKE_WANDB)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    yield folder / "log.json"
    sys.modules.pop("wandb", None)


def test_wandb_gets_the_metrics_and_a_resumed_run_keeps_its_id(config_of, wandb_log):
    labels = {"notes": "first try", "tag": ("a", "b"), "group": "sweep"}
    train.run(config_of(report_to="wandb", max_train_steps=3, sampling_steps=3, **labels))
    result = train.run(config_of(report_to="wandb"))
    (first, *logged), (second, *later) = json.loads(wandb_log.read_text())
    assert first["name"] == "run"
    assert first["id"] == second["id"] == (Path(result.run) / "wandb_id").read_text()
    assert second["resume"] == "allow"
    assert (first["notes"], first["tags"], first["group"]) == ("first try", "('a', 'b')", "sweep")
    assert (second["notes"], second["tags"], second["group"]) == ("None",) * 3  # W&B keeps those that it has
    assert logged[-1] == [3, {"samples": [256, 256, 3]}]
    rows = {row.pop("step"): row for row in read_metrics(RunFolder(Path(result.run)))}
    assert dict(logged[:-1] + later) == rows


FAULTS = {
    "init": "def init(settings, **options):\n    raise ConnectionError('no route to host\\nmore')\n",
    "log": "Run.log = lambda *_, **__: 1 / 0\n",
    "image": "Image = None\n",
    "finish": "Run.finish = lambda _: 1 / 0\n",
    "import": "raise RuntimeError('broken installation')\n",
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_tracker_that_fails_is_one_warning_and_the_run_goes_on(config_of, wandb_log, caplog, fault):
    (wandb_log.parent / "wandb.py").write_text(FAKE_WANDB + FAULTS[fault])
    result = train.run(config_of(report_to="wandb", sampling_steps=6 * (fault == "image")))
    assert (result.step, result.interrupted) == (6, False)
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert re.match(r"W&B is switched off \([^\n]+\): the run continues, .*WANDB_MODE=offline", warning)
    assert [row["step"] for row in read_metrics(RunFolder(Path(result.run)))] == [2, 4, 6]


def test_an_upload_that_does_not_end_does_not_keep_the_run(config_of, wandb_log, caplog, monkeypatch):
    (wandb_log.parent / "wandb.py").write_text(FAKE_WANDB + "import time\nRun.finish = lambda _: time.sleep(60)\n")
    monkeypatch.setattr(wandb_tracker, "END_S", 0.2)
    start = time.monotonic()
    assert train.run(config_of(report_to="wandb")).step == 6
    assert time.monotonic() - start < 30
    assert "W&B is switched off (no end of the upload in 0.2 s: 'wandb sync'" in caplog.text


def test_the_real_wandb_without_a_key_is_one_line_that_names_the_offline_mode(config_of, monkeypatch, tmp_path, caplog):
    pytest.importorskip("wandb")
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # no .netrc
    start = time.monotonic()
    assert train.run(config_of(report_to="wandb")).step == 6
    assert time.monotonic() - start < 40
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert re.match(r"W&B is switched off \([^\n]+\): .*WANDB_MODE=offline", warning)


@pytest.mark.slow
def test_tensorboard_gets_the_metrics_and_the_grids(config_of):
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train.run(config_of(max_train_steps=3))
    result = train.run(config_of(sampling_steps=6))
    written = accumulators.EventAccumulator(str(Path(result.run) / "tensorboard"))
    written.Reload()
    rows = read_metrics(RunFolder(Path(result.run)))
    for name in ("loss", "alignment_loss", "grad_norm", "images_per_s"):
        logged = [(event.step, event.value) for event in written.Scalars(name)]
        assert logged == [(row["step"], pytest.approx(row[name])) for row in rows]
    assert [event.step for event in written.Images("samples")] == [6]


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_tracker_that_is_not_installed_is_an_error(config_of, monkeypatch, name):
    monkeypatch.setattr(importlib.util, "find_spec", lambda wanted: None)
    with pytest.raises(
        ConfigError, match=f"--report-to is '{name}', but {name} is not installed: run 'pip install {name}'"
    ):
        train.run(config_of(report_to=name))


def test_no_tracker_is_used_where_none_is_installed(config_of, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda wanted: None)
    result = train.run(config_of(max_train_steps=1))
    assert not (Path(result.run) / "tensorboard").exists()


IMAGE = np.full((8, 8, 3), 128, np.uint8)


def log_with_a_kill(config):
    """Log 6 steps, of which 4 and 5 are taken and logged twice, as after a kill; an image with each from the third."""
    run = RunFolder.of(config)
    run.path.mkdir(parents=True)
    for start, stop in ((0, 5), (3, 6)):
        tracker = open_tracker(config, run, start)
        for step in range(start + 1, stop + 1):
            tracker.log_scalars(step, {"loss": step / 4})
            if step > 2:
                tracker.log_image(step, IMAGE)
        tracker.close()
    return run


LABELS = {"notes": "first try", "tag": ("a",), "group": "sweep"}
LOSSES = {step: step / 4 for step in range(1, 7)}


def test_steps_that_are_taken_again_are_logged_once(config_of, wandb_log):
    run = log_with_a_kill(config_of(report_to="wandb,tensorboard"))
    calls = [call for _, *session in json.loads(wandb_log.read_text()) for call in session]
    assert [(step, values["loss"]) for step, values in calls if "loss" in values] == list(LOSSES.items())
    assert [step for step, values in calls if "samples" in values] == [3, 4, 5, 6]
    assert json.loads(run.trackers_file.read_text()) == {"wandb": {"scalars": 6, "images": 6}}
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    written = accumulators.EventAccumulator(str(run.tensorboard))
    written.Reload()
    assert {event.step: event.value for event in written.Scalars("loss")} == LOSSES
    assert len(written.Scalars("loss")) == len(LOSSES)


@pytest.mark.parametrize("text", ["{", "[]", '{"wandb": 1}', '{"wandb": {"scalars": "x"}}'])
def test_a_damaged_record_of_logged_steps_is_replaced_with_a_warning(config_of, wandb_log, caplog, text):
    config = config_of(report_to="wandb")
    run = RunFolder.of(config)
    run.path.mkdir(parents=True)
    run.trackers_file.write_text(text)
    tracker = open_tracker(config, run, 0)
    tracker.log_scalars(6, {"loss": 1.0})
    assert json.loads(run.trackers_file.read_text()) == {"wandb": {"scalars": 6}}
    assert "trackers.json.damaged-1, trackers may get steps again" in caplog.text


def test_trackio_has_every_step_once(config_of, monkeypatch, tmp_path, capfd):
    """With the real library."""
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    trackio = pytest.importorskip("trackio")
    run = log_with_a_kill(config_of(report_to="trackio", **LABELS))
    from trackio.sqlite_storage import SQLiteStorage

    name = run.trackio_name.read_text()
    assert re.fullmatch("run-[0-9a-f]{8}", name)
    logged = SQLiteStorage.get_logs("repa-pipe", name)
    assert [(row["step"], row["loss"]) for row in logged if "loss" in row] == list(LOSSES.items())
    assert [row["step"] for row in logged if "samples" in row] == [3, 4, 5, 6]
    (found,) = trackio.Api().runs("repa-pipe")
    assert found.name == name
    assert (found.config["model"], found.config["notes"], found.config["tags"]) == ("SiT-T/2", "first try", ["a"])
    assert capfd.readouterr().out == ""


def test_aim_has_every_step_once(config_of):
    """With the real library."""
    aim = pytest.importorskip("aim")
    run = log_with_a_kill(config_of(report_to="aim", **LABELS))
    from aim.sdk.index_manager import RepoIndexManager

    repository = aim.Repo(str(run.path.parent))
    RepoIndexManager.get_index_manager(repository).index(run.aim_id.read_text())  # as `aim up` does
    found = aim.Run(run_hash=run.aim_id.read_text(), repo=str(run.path.parent), read_only=True)
    assert (found.name, found.experiment, found.description, found.tags) == ("run", "sweep", "first try", ["a"])
    assert found["config"]["model"] == "SiT-T/2"
    (losses,) = [metric for metric in found.metrics() if metric.name == "loss"]
    frame = losses.dataframe()
    assert sorted(zip(frame["step"], frame["value"], strict=True)) == list(LOSSES.items())


def test_the_real_wandb_offline_has_every_step_once(config_of, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = log_with_a_kill(config_of(report_to="wandb", **LABELS))
    until = time.monotonic() + 20
    while True:  # W&B's own process writes the last rows, maybe after `finish` has returned
        logged = [row for path in sorted(run.path.glob("wandb/offline-run-*/*.wandb")) for row in history(path)]
        if 6 in dict(logged) or time.monotonic() > until:
            break
        time.sleep(0.1)
    assert sorted(step for step, names in logged if "loss" in names) == list(LOSSES)
    assert sorted(step for step, names in logged if "samples" in names) == [3, 4, 5, 6]


def history(path):
    """Return the step and the names of every row in a file of W&B's offline mode."""
    from wandb.proto import wandb_internal_pb2

    for data in records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.HasField("history"):
            names = {item.key or item.nested_key[0] for item in record.history.item}
            yield record.history.step.num, names


def records(data):
    """Return the records of such a file, a log of LevelDB: parts with a header of 7 bytes, in blocks of 32 KiB."""
    parts, at = [], 7
    while at < len(data):
        if 32_768 - at % 32_768 < 7:
            at += 32_768 - at % 32_768
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        parts.append(data[at + 7 : at + 7 + length])
        at += 7 + length
        if kind in (1, 4):  # complete, or the last part
            yield b"".join(parts)
            parts = []
