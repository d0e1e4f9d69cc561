import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from repa_pipe.errors import ConfigError
from repa_pipe.metrics import nearest_neighbors
from repa_pipe.metrics.nearest_neighbors import NearestNeighbors


@pytest.fixture
def features():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(count, 24, generator=generator) * 5 + 1 for count in (30, 100)]


@pytest.mark.parametrize("block", [1, 7, 100])
def test_neighbors_are_those_of_a_full_search_whatever_the_blocks(features, block, monkeypatch):
    monkeypatch.setattr(nearest_neighbors, "QUERIES_AT_ONCE", 8)
    queries, others = features
    numbers = torch.arange(100) * 3  # numbers of samples, some are quarantined
    search = NearestNeighbors(queries, 4)
    for start in range(0, 100, block):
        search.add(numbers[start : start + block], others[start : start + block])
    exact = cdist(queries.double().numpy(), others.double().numpy(), "cosine")
    order = exact.argsort(1)[:, :4]
    np.testing.assert_array_equal(search.indices.numpy(), order * 3)
    np.testing.assert_allclose(search.distances.numpy(), np.take_along_axis(exact, order, 1), atol=1e-6)


def test_an_image_is_not_its_own_neighbor(features):
    _, others = features
    search = NearestNeighbors(others[[5, 5]], 2, own=torch.tensor([5, -1]))
    search.add(torch.arange(100), others)
    assert search.indices[1, 0] == 5
    assert search.distances[1, 0] < 1e-6
    assert 5 not in search.indices[0]
    assert search.indices[0, 0] == search.indices[1, 1]


def test_missing_neighbors_are_marked(features):
    search = NearestNeighbors(features[0], 3, own=torch.zeros(30, dtype=torch.int64))
    search.add(torch.arange(2), features[1][:2])
    assert search.indices.tolist() == [[1, -1, -1]] * 30
    assert search.distances[:, 1:].isinf().all()


def test_other_features_are_refused(features):
    search = NearestNeighbors(features[0], 1)
    with pytest.raises(ConfigError, match="widths 24 and 12"):
        search.add(torch.arange(100), features[1][:, :12])
    with pytest.raises(ConfigError, match="NaN or infinite"):
        search.add(torch.arange(100), features[1] * torch.inf)
