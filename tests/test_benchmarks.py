"""A short version of the benchmark that kills encode runs."""

from pathlib import Path

import pytest


@pytest.mark.slow
def test_a_store_survives_ten_kills_with_identical_bytes(tmp_path, monkeypatch):
    folder = Path(__file__).parents[1] / "benchmarks"
    monkeypatch.syspath_prepend(folder)  # the forked processes import the functions by the name of their module
    import kill_encode

    summary = kill_encode.kill_runs(tmp_path, runs=10, images=48, seed=1)
    assert summary["killed"] >= 5
    assert summary["differing_files"] == 0
    assert len(summary["shards_committed_when_killed"]) >= 3
