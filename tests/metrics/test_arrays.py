import subprocess
import sys

import numpy as np
import pytest
import torch

from repa_pipe.metrics import FeatureStatistics, precision_recall
from repa_pipe.metrics.arrays import full_float32

OLD_SWITCH = "ignore:Please use the new API settings"  # torch 2.9 alone warns about the setting that training uses


@pytest.fixture
def matmul_setting():
    """Set the reduced precision that training uses, and restore the previous setting afterward."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


def test_importing_the_metrics_loads_no_heavy_libraries():
    heavy = "('scipy', 'torchvision', 'torch_fidelity', 'timm', 'diffusers', 'ray')"
    code = f"import sys, repa_pipe.metrics; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


@pytest.mark.filterwarnings(OLD_SWITCH)
def test_full_float32_disables_reduced_precision_and_restores_it(matmul_setting):
    assert torch.backends.cuda.matmul.allow_tf32
    with full_float32():
        inside = torch.backends.cuda.matmul.fp32_precision
    assert inside == "ieee"
    assert torch.backends.cuda.matmul.allow_tf32


@pytest.mark.filterwarnings(OLD_SWITCH)
def test_full_float32_restores_reduced_precision_after_an_error(matmul_setting):
    with pytest.raises(KeyError), full_float32():
        raise KeyError
    assert torch.backends.cuda.matmul.allow_tf32


def test_read_only_arrays_are_accepted():
    features = np.random.default_rng(0).normal(size=(20, 4))
    features.flags.writeable = False
    assert precision_recall(features, features) == (1.0, 1.0)


def test_tensors_that_require_grad_are_accepted():
    features = torch.randn(20, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    statistics = FeatureStatistics(4)
    statistics.update(features)
    torch.testing.assert_close(statistics.mean, features.detach().double().mean(0))
