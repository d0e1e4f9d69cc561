import numpy as np
import pytest
import torch

from repa_pipe.diffusion.posterior import sample_posterior

SCALE = torch.tensor([0.18215, 0.3611, 1.0, 2.0]).reshape(1, 4, 1, 1)
BIAS = torch.tensor([0.0, -0.1, 0.5, 3.0]).reshape(1, 4, 1, 1)


@pytest.fixture
def moments():
    generator = torch.Generator().manual_seed(0)
    mean = 5 * torch.randn(3, 4, 8, 8, generator=generator)
    return torch.cat([mean, torch.rand(3, 4, 8, 8, generator=generator)], dim=1)


@pytest.fixture
def noise():
    return torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1))


def test_latents_are_those_of_the_formula_to_the_bit(moments, noise):
    mean, std = moments.numpy()[:, :4], moments.numpy()[:, 4:]
    expected = (mean + std * noise.numpy()) * SCALE.numpy() + BIAS.numpy()
    latents = sample_posterior(moments, noise, SCALE, BIAS)
    assert latents.dtype == torch.float32
    np.testing.assert_array_equal(latents.numpy(), expected)


def test_zero_noise_gives_the_scaled_mean(moments):
    latents = sample_posterior(moments, torch.zeros(3, 4, 8, 8), SCALE, BIAS)
    assert torch.equal(latents, moments[:, :4] * SCALE + BIAS)


def test_float16_moments_are_sampled_in_float32(moments, noise):
    rounded = moments.half()
    latents = sample_posterior(rounded, noise, SCALE, BIAS)
    assert latents.dtype == torch.float32
    assert torch.equal(latents, sample_posterior(rounded.float(), noise, SCALE, BIAS))
