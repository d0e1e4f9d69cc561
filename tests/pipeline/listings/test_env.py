"""`repa-pipe env` and `repa-pipe --version`."""

import sys

import torch

from repa_pipe import __version__
from repa_pipe.pipeline.listings import env


def facts():
    return dict(line.split("  ", 1) for line in env.run().splitlines())


def test_the_report_lists_versions_hardware_paths_and_variables(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("HF_TOKEN", "a secret")
    found = {name: value.strip() for name, value in facts().items()}
    assert found["python"] == sys.version.split()[0]
    assert found["repa-pipe"] == __version__
    assert found["$OMP_NUM_THREADS"] == "3"
    assert "a secret" not in env.run()
    assert ("gpu" in found) == (not torch.cuda.is_available())
    assert {"torch", "ray", "zarr", "cuda", "system", "cpu", "cpu flags", "memory", "package", "cache"} <= found.keys()


def test_an_installation_whose_torch_is_broken_is_reported(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "unknown: torch cannot be imported" in facts()["cuda"]


def test_the_version_names_the_libraries_that_matter(run_cli):
    code, out, _ = run_cli("--version")
    first, second = out.splitlines()
    assert (code, first) == (0, f"repa-pipe, version {__version__}")
    assert [part.split()[0] for part in second.split(", ")] == ["python", "torch", "ray", "zarr"]
