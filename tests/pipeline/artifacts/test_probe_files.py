"""Names of probes: two trainings or two settings never share a file."""

import json
from pathlib import Path

import pytest

from repa_pipe.pipeline.artifacts.probe_files import probe_file, same_probe_settings

SETTINGS = {"store": "store", "time": [0.5]}


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(checkpoints, settings=SETTINGS):
    path = probe_file(None, settings, checkpoints)
    path.parent.mkdir(parents=True, exist_ok=True)
    measured = {"step": 1, "time": 0.5, "block": 1, "accuracy": 0.25}
    rows = [{"checkpoint": f"{checkpoint.name} 17", **measured} for checkpoint in checkpoints]
    path.write_text(json.dumps({"settings": settings, "rows": rows, "encoder_accuracy": {}}))
    return path


def test_checkpoints_of_two_trainings_in_one_folder_have_files_of_their_own():
    first, second = [Path("models/a.pt")], [Path("models/b.pt")]
    paths = [write(first), write(second)]
    assert paths[0] == Path("models/probe.json")
    assert paths[1] != paths[0]
    assert [probe_file(None, SETTINGS, each) for each in (first, second)] == paths


def test_all_checkpoints_of_a_run_share_a_file_for_the_same_settings():
    steps = [Path(f"run/checkpoints/000000{step}.pt") for step in (1, 2)]
    assert {write(steps), write(steps[1:]), write(steps)} == {Path("run/probe.json")}
    other = write(steps, SETTINGS | {"time": [0.1]})
    assert other.parent == Path("run")
    assert other.name.startswith("probe-")
    assert write(steps) == Path("run/probe.json")
    assert probe_file("mine.json", SETTINGS, steps) == Path("mine.json")


def test_probes_with_the_random_streams_of_an_earlier_version_are_replaced():
    steps = [Path("run/checkpoints/0000001.pt")]
    assert write(steps) == write(steps, SETTINGS | {"random_streams": 2}) == Path("run/probe.json")
    assert not same_probe_settings(SETTINGS, SETTINGS | {"random_streams": 2})


def test_the_spelling_of_the_store_is_not_a_setting():
    assert same_probe_settings({"store": "./store/", "time": [0.5]}, SETTINGS)
    assert not same_probe_settings({"store": "other", "time": [0.5]}, SETTINGS)
    assert not same_probe_settings(None, SETTINGS)


def test_settings_that_an_earlier_version_did_not_have_are_their_defaults():
    settings = SETTINGS | {"path_type": None, "latents_stats": None}
    assert same_probe_settings(SETTINGS, settings)
    assert not same_probe_settings(SETTINGS, settings | {"path_type": "cosine"})
