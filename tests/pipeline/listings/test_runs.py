"""`repa-pipe runs`: the table of runs, for running, finished, unfinished, evaluated and broken ones."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from repa_pipe.config import EvaluateConfig, SampleConfig, TrainConfig
from repa_pipe.errors import ConfigError
from repa_pipe.pipeline.artifacts.metric_files import MetricRecord, write_metrics_file
from repa_pipe.pipeline.artifacts.metrics_log import MetricsLog
from repa_pipe.pipeline.artifacts.run_folder import RunFolder
from repa_pipe.pipeline.artifacts.run_record import RunRecord, Session, time_text, write_run_record
from repa_pipe.pipeline.artifacts.sample_files import SampleFiles, SampleResult
from repa_pipe.pipeline.listings import runs
from repa_pipe.pipeline.listings.runs import duration_text

ROW = {"loss": 1.0, "denoising_loss": 0.75, "alignment_loss": -0.5, "images_per_s": 200.0}


def make_run(path, steps=(), max_train_steps=1000, saved=(), **session):
    run = RunFolder(path)
    run.write_config(TrainConfig(store="s", batch_size=100, max_train_steps=max_train_steps))
    log = MetricsLog(run, 0)
    for step in steps:
        log.add({"step": step, **ROW})
    log.write()
    for step in saved:
        run.checkpoint(step).parent.mkdir(exist_ok=True)
        run.checkpoint(step).touch()
    if session:
        values = {
            "started": time_text(),
            "ended": None,
            "updated": time_text(),
            "error": None,
            "start_step": 0,
            "end_step": 0,
            "host": "other",
            "pid": 1,
            "gpu": None,
            "num_gpus": 0,
            "cpu": "",
            "cpu_flags": (),
            "versions": {},
            "git_commit": None,
            "git_dirty": None,
            "command": "",
        }
        write_run_record(run, RunRecord(created=time_text(), sessions=(Session(**values | session),)))
    return run


def make_metrics(run, step, num_images, **metrics):
    config = SampleConfig(checkpoint=str(run.path), num_fid_samples=num_images)
    files = SampleFiles(run.samples / f"{step}-{num_images}.npz")
    run.samples.mkdir(exist_ok=True)
    files.write_record(config, {}, SampleResult(str(files.npz), "", num_images, step, 1.0))
    evaluation = EvaluateConfig(samples=str(files.npz), reference="s")
    write_metrics_file(files.metrics, MetricRecord(metrics, num_images, 8, {}, (), evaluation))


def test_states_steps_rates_and_time_left(tmp_path):
    make_run(tmp_path / "a", [100, 200], state="running")
    make_run(tmp_path / "b", [100], saved=[150], state="stopped")
    make_run(tmp_path / "c", [1000], saved=[1000])  # of a version that recorded no sessions
    make_run(tmp_path / "d", [400])
    make_run(tmp_path / "e", state="running", updated=time_text(time.time() - 3600))
    found = {Path(row.run).name: row for row in runs.run([str(tmp_path)]).rows}
    assert {name: (row.state, row.step) for name, row in found.items()} == {
        "a": ("running", 200),
        "b": ("stopped", 150),
        "c": ("finished", 1000),
        "d": ("unknown", 400),
        "e": ("unknown", 0),
    }
    assert found["a"].seconds_left == 800 * 100 / 200.0
    assert (found["b"].seconds_left, found["e"].images_per_s, found["e"].losses) == (None, None, {})
    assert found["e"].seconds_since_update == pytest.approx(3600, abs=60)


def test_the_last_metrics_include_validation_losses_of_earlier_rows_and_the_fid_of_the_last_checkpoint(tmp_path):
    run = make_run(tmp_path / "run")
    log = MetricsLog(run, 0)
    log.add({"step": 100, **ROW, "val_denoising_loss": 0.875})
    log.add({"step": 200, **ROW, "denoising_loss": 0.5})
    log.write()
    make_metrics(run, 200, 16, fid=9.0)
    make_metrics(run, 200, 64, fid=7.0)
    make_metrics(run, 100, 64, fid=8.0)
    make_metrics(run, 300, 64, fd_enc=1.0)
    (row,) = runs.run([str(run.path)]).rows
    assert row.losses == {"denoising_loss": 0.5, "alignment_loss": -0.5, "val_denoising_loss": 0.875}
    assert row.fid == 7.0
    files = SampleFiles(run.samples / "200-64.npz")
    evaluation = EvaluateConfig(samples=str(files.npz), reference="other")
    write_metrics_file(files.metrics_with({}), MetricRecord({"fd_encoder": 1.0}, 64, 8, {}, (), evaluation))
    assert runs.run([str(tmp_path)]).rows[0].fid == 7.0


def test_runs_are_found_below_folders_but_not_inside_of_runs_or_hidden_folders(tmp_path):
    for name in ("sweep/x", "deep/a/b", "too/deep/a/b", "sweep/x/inside", ".hidden/y"):
        make_run(tmp_path / name)
    found = [
        str(Path(row.run).relative_to(tmp_path)) for row in runs.run([str(tmp_path), str(tmp_path / "sweep")]).rows
    ]
    assert found == ["deep/a/b", "sweep/x"]
    with pytest.raises(ConfigError, match="there is no folder nowhere"):
        runs.run(["nowhere"])


def test_the_command_prints_a_table_and_names_broken_runs(tmp_path, run_cli, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "exps/good", [100], state="running")
    for name, file in {"settings": "train.json", "record": "run.json", "log": "metrics.parquet"}.items():
        run = make_run(tmp_path / "exps" / name, [100], state="running")
        (run.path / file).write_text("{")
    code, out, errors = run_cli("runs")
    assert code == 0
    header, line = out.splitlines()
    names = ["run", "state", "step", "of", "images/s", "left", "denoising", "alignment", "val denoising", "FID", "age"]
    assert re.split(r"  +", header) == names
    assert re.split(r"  +", line)[:7] == ["exps/good", "running on other", "100", "1,000", "200.0", "7.5 min", "0.7500"]
    broken = [name.partition(" cannot be read: ")[0] for name in errors.splitlines()]
    assert broken == ["warning: exps/log", "warning: exps/record", "warning: exps/settings"]
    code, out, _ = run_cli("runs", "exps/good", "--json")
    (row,) = json.loads(out)
    assert (row["run"], row["state"], row["images_per_s"], row["seconds_left"]) == (
        "exps/good",
        "running",
        200.0,
        450.0,
    )


def test_distances_of_all_detectors_have_columns_and_their_counts(tmp_path, run_cli):
    one, two = make_run(tmp_path / "one", [100]), make_run(tmp_path / "two", [100])
    make_metrics(one, 100, 64, fid=7.0, fd_enc=3.0)
    make_metrics(one, 200, 64, fd_enc=2.0, kid=1.0)
    make_metrics(two, 100, 32, fid=9.0, fd_other=1.0)
    _, out, _ = run_cli("runs", tmp_path)
    header, *lines = (re.split(r"  +", line) for line in out.splitlines())
    assert header[-4:] == ["FID", "FD enc", "FD other", "age"]
    assert [line[-4:-1] for line in lines] == [["7.00", "2.00", "-"], ["9.00", "-", "1.00"]]
    rows = json.loads(run_cli("runs", tmp_path, "--json")[1])
    assert rows[0]["distances"]["fd_enc"] == {"value": 2.0, "step": 200, "num_images": 64, "num_reference": 8}
    assert (rows[0]["fid"], rows[1]["distances"]["fid"]["num_images"]) == (7.0, 32)


def test_runs_are_sorted_and_those_without_a_value_are_last(tmp_path, run_cli):
    make_run(tmp_path / "a", [100], state="stopped", updated=time_text(time.time() - 100))
    make_run(tmp_path / "b", [300], state="stopped", updated=time_text(time.time() - 500))
    make_metrics(make_run(tmp_path / "c", state="stopped"), 100, 8, fid=2.0)
    make_metrics(make_run(tmp_path / "d", [200], state="stopped", updated=time_text(time.time() - 50)), 100, 8, fid=1.0)
    expected = {"age": "cdab", "step": "bdac", "loss": "abdc", "fid": "dcab"}
    for order, names in expected.items():
        rows = json.loads(run_cli("runs", tmp_path, "--json", "--sort", order)[1])
        assert "".join(Path(row["run"]).name for row in rows) == names, order


def test_a_run_on_another_machine_is_shown_with_its_name(tmp_path):
    make_run(tmp_path / "a", [100], state="running", host="gpu-7")
    make_run(tmp_path / "b", [100], state="finished", host="gpu-7")
    make_run(tmp_path / "c", [100], state="running", host=socket.gethostname(), pid=os.getpid())
    cells = [re.split(r"  +", line)[1] for line in runs.run([str(tmp_path)]).table.splitlines()[1:]]
    assert cells == ["running on gpu-7", "finished", "running"]


def test_a_folder_without_runs_is_no_error(tmp_path, run_cli):
    assert run_cli("runs", tmp_path)[:2] == (0, "no runs\n")
    code, _, errors = run_cli("runs", tmp_path / "nowhere")
    assert (code, "there is no folder" in errors) == (2, True)


def test_listing_runs_imports_no_heavy_library(tmp_path):
    make_metrics(make_run(tmp_path / "run", [100], state="running"), 100, 8, fid=1.0)
    script = (
        "import sys; from repa_pipe.pipeline.listings import runs; print(runs.run(sys.argv[1:]).rows[0].fid, "
        "[name for name in ('torch', 'ray', 'zarr', 'timm', 'scipy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=True)
    assert done.stdout == "1.0 []\n"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59, "59 s"), (90, "1.5 min"), (7200, "2.0 h"), (200_000, "2.3 d")]
)
def test_durations_are_shown_in_their_largest_unit(seconds, text):
    assert duration_text(seconds) == text
