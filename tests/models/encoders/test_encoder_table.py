"""The tables in docs/encoders.md match the output of benchmarks/encoder_table.py."""

import runpy
from pathlib import Path

import pytest

from repa_pipe.models.encoders.registry import REGISTRY, TIMM_NAMES

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "encoders.md").read_text()
TABLES = runpy.run_path(str(ROOT / "benchmarks" / "encoder_table.py"))
shapes_table, weights_table = TABLES["shapes_table"], TABLES["weights_table"]


def test_page_lists_sizes_and_costs_of_small_encoders():
    rows = shapes_table(["dinov2-vit-s", "efficientnet-lite0"]).splitlines()
    assert set(rows) <= set(PAGE.splitlines())


def test_sizes_and_costs_match_their_closed_forms():
    # A block of width D on N tokens has 12 D^2 N multiplications in its matrices and 2 N^2 D in its attention, at two
    # operations each. Before the blocks, each of the 256 patches of 14x14x3 values is projected to D.
    row = shapes_table(["dinov2-vit-s"]).splitlines()[-1]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    width, tokens = 384, 257
    flops = 12 * 2 * (12 * width**2 * tokens + 2 * tokens**2 * width) + 2 * 256 * 14 * 14 * 3 * width
    assert cells[5] == f"{flops / 1e9:.1f}"
    values = 256 * width
    assert cells[6:] == [f"{2 * values:,}", f"{values + 512:,}", f"{values // 2 + 512:,}"]
    blocks = 12 * (12 * width**2 + 13 * width + 2 * width)  # matrices, biases and norms, layer scales
    other = 14 * 14 * 3 * width + width + width + 1370 * width + 2 * width
    assert cells[4] == f"{(blocks + other) / 1e6:.1f}"


def test_page_lists_the_origin_of_weights():
    assert weights_table(list(REGISTRY)) in PAGE


@pytest.mark.slow
def test_page_contains_the_complete_tables():
    names = [*REGISTRY, *TIMM_NAMES]
    assert weights_table(names) in PAGE
    some = shapes_table(names[::3]).splitlines()  # each is built and run to count its operations
    assert set(some) <= set(PAGE.splitlines())
