from pathlib import Path

import numpy as np
import pytest
import torch

from repa_pipe.errors import ConfigError
from repa_pipe.metrics import spatial

REFERENCE = Path(__file__).parents[1] / "reference"


def thermometer(side):
    """Return tokens [1, side^2, 2 (side-1)] whose cosine at Manhattan distance d is 1 - d / (side - 1)."""
    levels = torch.where(torch.arange(side)[:, None] > torch.arange(side - 1), 1.0, -1.0)
    rows = levels[:, None, :].expand(side, side, -1)
    return torch.cat([rows, rows.transpose(0, 1)], dim=2).reshape(1, side * side, -1)


def manhattan(side):
    positions = np.stack(np.unravel_index(np.arange(side * side), (side, side)), axis=1)
    return np.abs(positions[:, None] - positions[None]).sum(-1)


@pytest.mark.parametrize("name", ["lds", "cds", "rmsc"])
def test_matches_irepa(name):
    irepa = np.load(REFERENCE / "irepa_spatial.npz")
    values = getattr(spatial, name)(torch.from_numpy(irepa["features"]))
    np.testing.assert_allclose(values, irepa[name], atol=1e-4)


def test_linearly_decaying_cosine_has_closed_forms():
    side = 10
    tokens, distances = thermometer(side), manhattan(side)
    far = distances[distances >= 6].mean()
    assert spatial.lds(tokens).item() == pytest.approx((far - 1) / (side - 1), abs=1e-6)
    assert spatial.cds(tokens).item() == pytest.approx(1 / (side - 1), abs=1e-6)
    assert spatial.rmsc(tokens).item() == pytest.approx(np.sqrt(distances.mean() / (side - 1)), abs=1e-6)


def test_equal_tokens_have_no_structure():
    tokens = torch.ones(2, 64, 5)
    for metric in (spatial.lds, spatial.cds, spatial.rmsc):
        np.testing.assert_allclose(metric(tokens), [0, 0], atol=1e-6)


def test_norms_of_tokens_do_not_matter():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(3, 64, 8, generator=generator)
    scaled = tokens * (1 + torch.rand(3, 64, 1, generator=generator))
    for metric in (spatial.lds, spatial.cds, spatial.rmsc):
        np.testing.assert_allclose(metric(scaled), metric(tokens), atol=1e-6)


def test_half_precision_tokens_are_accepted():
    tokens = thermometer(8)
    assert spatial.cds(tokens.half()).dtype == torch.float32
    np.testing.assert_allclose(spatial.cds(tokens.half()), spatial.cds(tokens), atol=1e-6)


def test_distances_that_the_grid_does_not_have_are_left_out():
    assert spatial.cds(thermometer(3)).item() == pytest.approx(1 / 2, abs=1e-6)  # distances 1 to 4 only


def test_class_token_is_rejected():
    for metric in (spatial.lds, spatial.cds):
        with pytest.raises(ConfigError, match=r"\[2, 257, 4\].*class token"):
            metric(torch.zeros(2, 257, 4))


def test_tokens_of_another_rank_are_rejected():
    with pytest.raises(ConfigError, match=r"\[256, 4\]"):
        spatial.rmsc(torch.zeros(256, 4))


def test_grids_without_distant_tokens_are_rejected():
    with pytest.raises(ConfigError, match="no pair at distance 6"):
        spatial.lds(torch.zeros(1, 9, 4))
    with pytest.raises(ConfigError, match="at least 2 distances, found 0"):
        spatial.cds(torch.zeros(1, 1, 4))
