"""The memory that a process may use."""

import os

import pytest

from repa_pipe import control_groups
from repa_pipe.stores.memory import usable_memory

PHYSICAL = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/\n", {}, PHYSICAL),
        ("0::/\n", {"memory.max": "1000000"}, 1_000_000),
        ("0::/\n", {"memory.max": "max"}, PHYSICAL),
        ("0::/job/step\n", {"job/step/memory.max": "max", "job/memory.max": "2000000"}, 2_000_000),
        ("0::/job\n", {"job/memory.max": "3000000", "memory.max": "2000000"}, 2_000_000),
        ("0::/job\n", {"job/memory.max": "3000000", "job/memory.high": "1000000"}, 1_000_000),
        ("7:memory:/docker/1f\n", {"memory/memory.limit_in_bytes": "4000000"}, 4_000_000),
        ("7:memory:/job\n", {"memory/job/memory.limit_in_bytes": "9223372036854771712"}, PHYSICAL),
        ("7:cpu:/job\n", {"cpu/job/memory.limit_in_bytes": "1000"}, PHYSICAL),
    ],
)
def test_the_lowest_limit_of_control_groups_counts(tmp_path, monkeypatch, own, files, expected):
    (tmp_path / "self").write_text(own)
    for name, text in files.items():
        path = tmp_path / "sys" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    monkeypatch.setattr(control_groups, "OWN_CGROUPS", tmp_path / "self")
    monkeypatch.setattr(control_groups, "CGROUPS", tmp_path / "sys")
    assert usable_memory() == expected
