import math

import pytest
import torch

from repa_pipe.diffusion.interpolant import Interpolant, draw_times
from repa_pipe.errors import ConfigError

PATHS = ("linear", "cosine")
TIMES = torch.linspace(0.02, 1, 50, dtype=torch.float64)


@pytest.mark.parametrize("path", PATHS)
def test_data_is_at_zero_and_noise_at_one(path):
    start, end = Interpolant(path)(torch.tensor(0.0).double()), Interpolant(path)(torch.tensor(1.0).double())
    assert (float(start.alpha_t), float(start.sigma_t)) == pytest.approx((1, 0))
    assert (float(end.alpha_t), float(end.sigma_t)) == pytest.approx((0, 1))


def test_linear_and_cosine_paths_have_their_definitions():
    linear, cosine = Interpolant("linear")(TIMES), Interpolant("cosine")(TIMES)
    torch.testing.assert_close(linear.alpha_t + linear.sigma_t, torch.ones_like(TIMES))
    torch.testing.assert_close(linear.sigma_t, TIMES)
    torch.testing.assert_close(cosine.alpha_t**2 + cosine.sigma_t**2, torch.ones_like(TIMES))
    torch.testing.assert_close(torch.atan2(cosine.sigma_t, cosine.alpha_t), TIMES * math.pi / 2)


@pytest.mark.parametrize("path", PATHS)
def test_velocity_is_the_derivative_with_respect_to_time(path):
    data, noise, weight = torch.randn(3, 50, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    interpolant = Interpolant(path)
    t = TIMES.clone().requires_grad_()
    x_t, velocity = interpolant.interpolate(data, noise, t)
    (derivative,) = torch.autograd.grad((weight * x_t).sum(), t)
    torch.testing.assert_close((weight * velocity).sum(dim=(1, 2)), derivative)
    alpha_t, sigma_t, _, _ = interpolant(TIMES)
    torch.testing.assert_close(x_t[7], alpha_t[7] * data[7] + sigma_t[7] * noise[7])


@pytest.mark.parametrize("path", PATHS)
def test_score_of_a_gaussian_has_its_closed_form(path):
    """Data N(m, s^2): x_t is N(alpha m, v), v = alpha^2 s^2 + sigma^2, and the velocity is E[d x_t / dt | x_t]."""
    m, s = 0.7, 0.3
    alpha_t, sigma_t, d_alpha_t, d_sigma_t = Interpolant(path)(TIMES)
    variance = alpha_t**2 * s**2 + sigma_t**2
    x_t = torch.linspace(-2, 2, 50, dtype=torch.float64)
    offset = (x_t - alpha_t * m) / variance
    velocity = d_alpha_t * (m + alpha_t * s**2 * offset) + d_sigma_t * sigma_t * offset
    torch.testing.assert_close(Interpolant(path).score(velocity, x_t, TIMES), -offset)


@pytest.mark.parametrize("path", PATHS)
def test_lognormal_times_have_normal_log_noise_ratios(path):
    normal = torch.linspace(-5, 5, 41, dtype=torch.float64)
    alpha_t, sigma_t, _, _ = Interpolant(path)(Interpolant(path).lognormal_time(normal))
    torch.testing.assert_close((sigma_t / alpha_t).log(), normal)


def test_drawn_times_depend_only_on_the_generator_and_have_their_distribution():
    linear = Interpolant("linear")
    for weighting, deviation in (("uniform", math.sqrt(1 / 12)), ("lognormal", 0.20838)):
        first, again = (draw_times(weighting, linear, 20_000, torch.Generator().manual_seed(5)) for _ in range(2))
        assert torch.equal(first, again)
        assert first.dtype == torch.float32
        assert float(first.min()) >= 0
        assert float(first.max()) < 1
        assert float(first.mean()) == pytest.approx(0.5, abs=0.01)
        assert float(first.std()) == pytest.approx(deviation, rel=0.02)


def test_lognormal_times_have_the_given_mean_and_deviation_of_the_log_ratio():
    for path in PATHS:
        t = draw_times("lognormal", Interpolant(path), 20_000, torch.Generator().manual_seed(5), mean=0.8, std=0.6)
        alpha_t, sigma_t, *_ = Interpolant(path)(t.double())
        ratios = (sigma_t / alpha_t).log()
        assert float(ratios.mean()) == pytest.approx(0.8, abs=0.02)
        assert float(ratios.std()) == pytest.approx(0.6, abs=0.02)


def test_truncated_times_are_lognormal_below_the_last():
    drawn = draw_times("truncated_lognormal", Interpolant("linear"), 20_000, torch.Generator().manual_seed(5))
    assert 0.97 < drawn.max() <= 0.999
    assert float(drawn.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(drawn.std()) == pytest.approx(0.20838, abs=0.005)
    with pytest.raises(ConfigError, match="'truncated_lognormal' for the cosine path"):
        draw_times("truncated_lognormal", Interpolant("cosine"), 1, torch.Generator())


def test_unknown_path_and_weighting_are_rejected():
    with pytest.raises(ConfigError, match="'edm'; expected 'linear'"):
        Interpolant("edm")
    with pytest.raises(ConfigError, match="'cosine' for the linear path; expected 'uniform'"):
        draw_times("cosine", Interpolant("linear"), 1, torch.Generator())
