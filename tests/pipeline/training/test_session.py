"""The sessions that training records in `run.json`."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from repa_pipe.errors import BusyError, ConfigError
from repa_pipe.pipeline import train
from repa_pipe.pipeline.artifacts.run_folder import RunFolder
from repa_pipe.pipeline.artifacts.run_record import read_run_record, write_run_record
from repa_pipe.pipeline.training import session as session_module
from repa_pipe.pipeline.training.objective import Objective
from repa_pipe.stores import AlignmentDataset, open_store


def record_of(config):
    return read_run_record(RunFolder(Path(config.output_dir) / config.exp_name))


def test_every_start_of_a_run_adds_a_session(config_of):
    train.run(config_of(max_train_steps=3, notes="first try", tag=("a", "b")))
    train.run(config_of())
    record = record_of(config_of())
    assert (record.notes, record.tags) == ("first try", ("a", "b"))
    steps = [(each.start_step, each.end_step, each.state) for each in record.sessions]
    assert steps == [(0, 3, "finished"), (3, 6, "finished")]
    last = record.sessions[-1]
    assert (last.host, last.pid, last.gpu, last.num_gpus) == (socket.gethostname(), os.getpid(), None, 0)
    assert last.command.startswith("repa-pipe train --store ")
    assert {"python", "torch", "ray", "zarr", "numpy", "timm", "diffusers"} <= last.versions.keys()
    with open_store(config_of().store) as store:
        assert last.images == len(store)
        dataset = AlignmentDataset(store, encoders=store.encoders, batch_size=1)
        assert last.bytes_per_image == dataset.bytes_per_sample(3) > 0
    assert record.created <= record.sessions[0].started <= record.sessions[0].ended <= last.started <= last.ended


def test_a_finished_run_gets_no_session_but_new_notes(config_of):
    train.run(config_of(tag=("a",)))
    train.run(config_of(notes="finished"))
    record = record_of(config_of())
    assert (record.notes, record.tags, len(record.sessions)) == ("finished", ("a",), 1)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_second_training_in_a_run_folder_is_refused_by_the_name_of_the_first(config_of, monkeypatch, seed):
    first, second = config_of(checkpointing_steps=1000), config_of(seed=seed, checkpointing_steps=1000)
    refused = []
    forward = Objective.forward

    def start_the_second_meanwhile(self, *args):
        if not refused:
            with pytest.raises(BusyError, match=rf"run is in use by process {os.getpid()} on {socket.gethostname()} "):
                train.run(second)
            refused.append(record_of(first))
        return forward(self, *args)

    monkeypatch.setattr(Objective, "forward", start_the_second_meanwhile)
    assert train.run(first).step == 6
    assert refused[0].sessions[-1].shown_state() == "running"
    assert RunFolder(Path(first.output_dir) / first.exp_name).read_config().seed == 0


def test_a_training_that_waited_for_one_with_other_settings_does_not_resume_from_it(config_of, monkeypatch):
    trained = RunFolder(Path(train.run(config_of(max_train_steps=1)).run))
    monkeypatch.setattr(train, "_is_finished", lambda config, run: False)  # looked before the first checkpoint
    with pytest.raises(ConfigError, match="--seed: recorded 0, requested 1"):
        train.run(config_of(seed=1))
    assert trained.read_config().seed == 0
    assert not list(trained.path.glob(".lease*"))


def test_a_damaged_record_is_set_aside(config_of, caplog):
    run = RunFolder(Path(train.run(config_of(max_train_steps=1, notes="first")).run))
    run.record_file.write_text("{")
    train.run(config_of(max_train_steps=2))
    assert [each.start_step for each in record_of(config_of()).sessions] == [1]
    assert (run.path / "run.json.damaged-1").read_text() == "{"
    assert "run.json.damaged-1, its notes, tags and sessions are lost" in caplog.text


def test_the_repository_of_the_current_folder_is_recorded(config_of, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    train.run(config_of(max_train_steps=1))
    for args in (
        ["init", "--quiet"],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "--allow-empty", "-qm", "c"],
    ):
        subprocess.run(["git", *args], check=True)
    train.run(config_of(max_train_steps=2))
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    sessions = record_of(config_of()).sessions
    assert [(each.git_commit, each.git_dirty) for each in sessions] == [(None, None), (commit, False)]


def test_a_failed_session_records_its_error(config_of, monkeypatch):
    train.run(config_of(max_train_steps=2))

    def forward(self, inputs):
        raise ValueError("some\nerror")

    monkeypatch.setattr(Objective, "forward", forward)
    with pytest.raises(ValueError, match="some"):
        train.run(config_of())
    last = record_of(config_of()).sessions[-1]
    assert (last.state, last.error, last.start_step, last.end_step) == ("failed", "some", 2, 2)
    assert last.ended


def test_an_error_is_raised_although_its_record_cannot_be_written(config_of, monkeypatch):
    def no_space(run, record):
        raise OSError(errno.ENOSPC, "No space left on device")

    def forward(self, inputs):
        monkeypatch.setattr(session_module, "write_run_record", no_space)
        raise ValueError("the error")

    monkeypatch.setattr(Objective, "forward", forward)
    with pytest.raises(ValueError, match="the error"):
        train.run(config_of())


def test_a_running_session_is_updated_with_the_rows_of_the_log(config_of, monkeypatch):
    seen = []
    write = session_module.write_run_record

    def written(run, record):
        write(run, record)
        seen.append([(each.state, each.end_step) for each in record.sessions])

    monkeypatch.setattr(session_module, "write_run_record", written)
    monkeypatch.setattr(session_module, "UPDATE_EVERY_S", 3600.0)
    train.run(config_of())
    assert seen[1:] == [[("running", 0)], [("finished", 6)]]  # the first call writes the notes
    seen.clear()
    monkeypatch.setattr(session_module, "UPDATE_EVERY_S", 0.0)
    train.run(config_of(exp_name="other"))
    assert seen[1:] == [[("running", step)] for step in (0, 2, 4, 6)] + [[("finished", 6)]]


def test_a_run_without_a_record_is_as_old_as_its_first_checkpoint(config_of):
    result = train.run(config_of(max_train_steps=3))
    run = RunFolder(Path(result.run))
    os.utime(run.last_checkpoint(), (1_700_000_000, 1_700_000_000))
    run.record_file.unlink()
    train.run(config_of())
    assert record_of(config_of()).created == "2023-11-14T22:13:20+00:00"


def test_a_killed_session_is_recorded_as_such_when_the_run_is_resumed(config_of):
    result = train.run(config_of(max_train_steps=3))
    run = RunFolder(Path(result.run))
    record = read_run_record(run)
    killed = replace(record.sessions[0], state="running", ended=None)
    write_run_record(run, replace(record, sessions=(killed,)))
    train.run(config_of())
    assert [(each.state, each.ended is None) for each in record_of(config_of()).sessions] == [
        ("killed", True),
        ("finished", False),
    ]


def wait_for_step(config):
    for _ in range(600):
        time.sleep(0.1)
        path = RunFolder(Path(config.output_dir) / "run").metrics_log
        if path.exists():
            return
    raise AssertionError("training did not start")


@pytest.mark.slow
def test_a_training_refuses_a_second_one_and_resumes_at_once_after_a_kill(config_of, caplog):
    caplog.set_level("INFO", "repa_pipe")
    config = config_of(max_train_steps=100_000, log_steps=1, checkpointing_steps=1, keep_checkpoints=1)
    command = [sys.executable, "-m", "repa_pipe.cli", "train"]
    process = subprocess.Popen([*command, *config.flags()], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for_step(config)
    refused = subprocess.run([*command, *config.flags()], check=False, capture_output=True, text=True)
    process.kill()
    process.wait()
    assert refused.returncode == 2
    assert f"run is in use by process {process.pid} on {socket.gethostname()} (" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1
    run = RunFolder(Path(config.output_dir) / "run")
    (lease,) = run.path.glob(".lease-*")  # left by the kill
    step = int(run.last_checkpoint().stem)
    assert train.run(replace(config, max_train_steps=step + 2)).step == step + 2
    assert "waiting up to" not in caplog.text
    assert not lease.exists()


@pytest.mark.slow
@pytest.mark.parametrize(("number", "state"), [(signal.SIGTERM, "stopped"), (signal.SIGKILL, "killed")])
def test_a_session_that_was_interrupted_or_killed_is_not_shown_as_running(config_of, number, state):
    config = config_of(max_train_steps=100_000, log_steps=1)
    command = [sys.executable, "-m", "repa_pipe.cli", "train", *config.flags()]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for_step(config)
    assert record_of(config).sessions[0].shown_state() == "running"
    process.send_signal(number)
    process.wait()
    (session,) = record_of(config).sessions
    assert session.shown_state() == state
    listed = subprocess.run(
        [sys.executable, "-m", "repa_pipe.cli", "runs", config.output_dir, "--json"], capture_output=True, check=True
    )
    assert [row["state"] for row in json.loads(listed.stdout)] == [state]
