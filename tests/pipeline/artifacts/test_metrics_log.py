"""A file in place of a run's log that is no log is set aside, and never replaced."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from repa_pipe.errors import ConfigError
from repa_pipe.pipeline import train
from repa_pipe.pipeline.artifacts.metrics_log import MetricsLog, read_metrics
from repa_pipe.pipeline.artifacts.run_folder import RunFolder


@pytest.fixture
def run(tmp_path):
    return RunFolder(tmp_path)


def write(path, **columns):
    pq.write_table(pa.table(columns), path)


NO_LOGS = {
    "empty": lambda path: path.write_bytes(b""),
    "CSV": lambda path: path.write_text("step,loss\n1,2\n"),
    "cut off": lambda path: (write(path, step=[1], loss=[0.5]), path.write_bytes(path.read_bytes()[:-20])),
    "folder": lambda path: path.mkdir(),
    "other columns": lambda path: write(path, url=["a"], width=[256]),
    "no columns": write,
    "steps as text": lambda path: write(path, step=["1"], loss=[0.5]),
    "missing steps": lambda path: write(path, step=[1, None], loss=[0.5, 0.4]),
    "no losses": lambda path: write(path, step=[1], caption=["a cat"]),
    "nested losses": lambda path: write(path, step=[1], loss=[[0.1, 0.2]]),
}


@pytest.mark.parametrize("make", NO_LOGS.values(), ids=NO_LOGS)
def test_a_file_that_is_no_log_is_refused_in_one_line_and_set_aside_in_training(run, caplog, make):
    make(run.metrics_log)
    with pytest.raises(ConfigError, match=r"^.*metrics\.parquet (is not a run's log|cannot be read as)[^\n]*$"):
        read_metrics(run)
    log = MetricsLog(run, 0)
    log.add({"step": 1, "loss": 0.5})
    log.write()
    assert read_metrics(run) == [{"step": 1, "loss": 0.5}]
    (warning,) = caplog.records
    assert warning.levelname == "WARNING"
    assert f"moved to {run.path / 'metrics.parquet.damaged-1'}" in warning.message


def test_files_that_were_set_aside_are_kept(run):
    for number in range(3):
        run.metrics_log.write_text(str(number))
        MetricsLog(run, 0)
    assert [(run.path / f"metrics.parquet.damaged-{number + 1}").read_text() for number in range(3)] == ["0", "1", "2"]


def test_columns_of_another_version_are_kept(run):
    write(run.metrics_log, step=[1], loss=[0.5], remark=["text"])
    log = MetricsLog(run, 1)
    log.add({"step": 2, "loss": 0.25})
    log.write()
    assert [(row["step"], row["remark"]) for row in read_metrics(run)] == [(1, "text"), (2, None)]


@pytest.mark.parametrize(
    ("lost", "steps", "words"),
    [
        (("metrics.parquet",), [2, 4], "metrics.parquet.damaged-1, its copy with the rows up to step 2 is used"),
        (("metrics.parquet", "metrics.parquet.copy"), [4], "metrics.parquet.damaged-1, the log starts again"),
    ],
)
def test_a_run_resumes_with_the_copy_of_its_log_or_without_one(config_of, caplog, lost, steps, words):
    run = RunFolder(Path(train.run(config_of(max_train_steps=2)).run))
    for name in lost:
        (run.path / name).write_bytes(b"")
    assert train.run(config_of(max_train_steps=4)).step == 4
    assert [row["step"] for row in read_metrics(run)] == steps
    assert words in caplog.text


def test_every_changed_byte_is_refused_or_changes_nothing(run):
    log = MetricsLog(run, 0)
    for step in range(1, 100):
        log.add({"step": step, "loss": 1 / step})
    log.write()
    rows, content, refused = read_metrics(run), run.metrics_log.read_bytes(), 0
    for position in range(0, len(content), 3):
        changed = bytearray(content)
        changed[position] ^= 1 << position % 8
        run.metrics_log.write_bytes(changed)
        try:
            assert read_metrics(run) == rows
        except ConfigError:
            refused += 1
    assert refused > len(content) / 3 / 3
