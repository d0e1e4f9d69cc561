"""TensorBoard and Weights & Biases get the same values as metrics.parquet."""

import importlib.util
import json
import re
import sys
import time
from pathlib import Path

import pytest

from repa_pipe.errors import ConfigError
from repa_pipe.pipeline import train
from repa_pipe.pipeline.artifacts.metrics_log import read_metrics
from repa_pipe.pipeline.artifacts.run_folder import RunFolder
from repa_pipe.pipeline.training import trackers

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
    monkeypatch.setattr(trackers, "WANDB_END_S", 0.2)
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
    with pytest.raises(ConfigError, match=f"--report-to is '{name}', which is not installed: run 'pip install {name}'"):
        train.run(config_of(report_to=name))


def test_no_tracker_is_used_where_none_is_installed(config_of, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda wanted: None)
    result = train.run(config_of(max_train_steps=1))
    assert not (Path(result.run) / "tensorboard").exists()
