"""Metrics are the same on a GPU as on the CPU, whatever precision training has set."""

import numpy as np
import pytest
import torch

from repa_pipe.metrics import FeatureStatistics, cknna, frechet_distance, kernel_distance, precision_recall, spatial
from repa_pipe.metrics.arrays import full_float32

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@pytest.fixture(params=["default", "legacy switch", "new switch"])
def reduced_precision(request):
    if request.param == "legacy switch":
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")
        yield
        torch.set_float32_matmul_precision(before)
    elif request.param == "new switch" and hasattr(torch.backends, "fp32_precision"):
        before = torch.backends.fp32_precision
        torch.backends.fp32_precision = "tf32"
        yield
        torch.backends.fp32_precision = before
    else:
        yield


@pytest.fixture(scope="module")
def sets() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    spread = torch.linspace(0.2, 2, 256)
    reference = torch.randn(3000, 256, generator=generator) * spread + 5
    samples = torch.randn(2500, 256, generator=generator) * spread * 0.97 + 5
    return reference, samples


@pytest.mark.usefixtures("reduced_precision")
def test_metrics_match_the_cpu(sets):
    on_gpu = [features.cuda() for features in sets]
    assert precision_recall(*on_gpu) == pytest.approx(precision_recall(*sets), abs=1e-3)
    assert kernel_distance(*on_gpu) == pytest.approx(kernel_distance(*sets), rel=1e-3)
    assert cknna(on_gpu[0], on_gpu[0] ** 3) == pytest.approx(cknna(sets[0], sets[0] ** 3), abs=1e-9)
    values = []
    for device in ("cuda", "cpu"):
        statistics = [FeatureStatistics(256, device) for _ in sets]
        for side, features in zip(statistics, sets, strict=True):
            side.update(features.to(device))
        values.append(frechet_distance(*(part for s in statistics for part in (s.mean, s.covariance))))
    assert values[0] == pytest.approx(values[1], rel=1e-9)


@pytest.mark.usefixtures("reduced_precision")
def test_full_float32_keeps_products_and_convolutions_exact(sets):
    matrix = sets[0][:256]
    image = sets[0][:64].reshape(1, 64, 16, 16)
    kernel = sets[1][:64, :64].reshape(64, 64, 1, 1)
    with full_float32():
        product = (matrix.cuda() @ matrix.cuda()).cpu()
        convolved = torch.nn.functional.conv2d(image.cuda(), kernel.cuda()).cpu()
    exact = matrix.double() @ matrix.double()
    assert ((product - exact).abs().max() / exact.abs().max()) < 2e-6
    exact = torch.nn.functional.conv2d(image.double(), kernel.double())
    assert ((convolved - exact).abs().max() / exact.abs().max()) < 2e-6


@pytest.mark.usefixtures("reduced_precision")
def test_spatial_metrics_match_the_cpu():
    tokens = torch.randn(2, 256, 32, generator=torch.Generator().manual_seed(1))
    for metric in (spatial.lds, spatial.cds, spatial.rmsc):
        np.testing.assert_allclose(metric(tokens.cuda()).cpu(), metric(tokens), atol=1e-5)
