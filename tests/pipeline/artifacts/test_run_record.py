"""The record of a run, and the state that is shown for a session."""

import dataclasses
import json
import subprocess
import sys
import time

import pytest

from repa_pipe.errors import ConfigError
from repa_pipe.pipeline.artifacts import run_record
from repa_pipe.pipeline.artifacts.run_folder import RunFolder
from repa_pipe.pipeline.artifacts.run_record import RunRecord, Session, read_run_record, time_text, write_run_record

HOST = run_record.socket.gethostname()


def session(**changes):
    values = {
        "started": time_text(),
        "ended": None,
        "updated": time_text(),
        "state": "running",
        "error": None,
        "start_step": 0,
        "end_step": 5,
        "host": HOST,
        "pid": 1,
        "gpu": None,
        "num_gpus": 0,
        "cpu": "A CPU",
        "cpu_flags": ("avx2",),
        "versions": {"torch": "2.9"},
        "git_commit": None,
        "git_dirty": None,
        "command": "repa-pipe train --store s",
    }
    return Session(**values | changes)


def test_a_record_round_trips_and_is_plain_json(tmp_path):
    run = RunFolder(tmp_path)
    assert read_run_record(run) is None
    record = RunRecord(
        created=time_text(0), notes="some", tags=("a", "b"), sessions=(session(), session(state="failed"))
    )
    write_run_record(run, record)
    assert read_run_record(run) == record
    values = json.loads((tmp_path / "run.json").read_text())
    assert (values["created"], values["tags"]) == ("1970-01-01T00:00:00+00:00", ["a", "b"])
    assert values["sessions"][0]["cpu_flags"] == ["avx2"]


@pytest.mark.parametrize("text", ["{", '{"created": "now", "sessions": [{}]}', '{"notes": ""}', '{"created": 5}'])
def test_a_damaged_record_is_an_error_that_names_the_file(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ConfigError, match=r"run\.json"):
        read_run_record(RunFolder(tmp_path))


@pytest.mark.parametrize("text", ["yesterday", "2026-11-26T18:00:00"])
def test_a_time_without_its_form_or_time_zone_is_an_error(tmp_path, text):
    write_run_record(RunFolder(tmp_path), RunRecord(created=time_text(), sessions=(session(),)))
    values = json.loads((tmp_path / "run.json").read_text())
    values["sessions"][0]["updated"] = text
    (tmp_path / "run.json").write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=f"run.json.*'{text}' is not a time: expected a form such as 1970-01-01T"):
        read_run_record(RunFolder(tmp_path))


def test_a_session_on_this_machine_is_running_as_long_as_its_process():
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    mine = session(pid=process.pid, updated=time_text(0))
    assert mine.shown_state() == "running"
    earlier = dataclasses.replace(mine, started=time_text(time.time() - 300))
    assert earlier.shown_state() == "killed"  # another process has its ID now
    process.communicate(b"\n")
    assert mine.shown_state() == "killed"
    assert dataclasses.replace(mine, state="stopped").shown_state() == "stopped"


def test_a_session_on_another_machine_is_unknown_after_fifteen_minutes_without_an_update():
    now = time.time()
    assert session(host="other", updated=time_text(now - 14 * 60)).shown_state() == "running"
    assert session(host="other", updated=time_text(now - 16 * 60)).shown_state() == "unknown"
    assert session(host="other", updated=time_text(now - 16 * 60), state="finished").shown_state() == "finished"
