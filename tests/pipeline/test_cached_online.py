"""Training from a store compared with running the encoder in every step, through the benchmark that the docs quote."""

import runpy
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow
def test_stored_tokens_only_change_the_losses_by_rounding(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    compare = runpy.run_path(str(BENCHMARKS / "cached_vs_online.py"))["compare"]
    rows = {row["codec"]: row for row in compare(tmp_path, 16, 12, 4)}
    for codec, denoising, alignment in (("float16", 1e-5, 1e-5), ("int8", 1e-4, 3e-4), ("int4", 1e-3, 1e-2)):
        assert rows[codec]["denoising_loss_max"] < denoising
        assert rows[codec]["alignment_loss_max"] < alignment
    assert rows["float16"]["online_over_stored"] > 1
