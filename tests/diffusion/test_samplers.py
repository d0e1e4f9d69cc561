import json
import math
import re
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from repa_pipe.diffusion.guidance import with_unconditional
from repa_pipe.diffusion.interpolant import Interpolant
from repa_pipe.diffusion.samplers import euler, euler_maruyama, guided, sde_times
from repa_pipe.errors import ConfigError
from repa_pipe.models.sit import EntangledSiT, SiT, SiTConfig

REFERENCE = Path(__file__).parents[1] / "reference"
fill = runpy.run_path(str(REFERENCE / "weights.py"))["fill"]

RECORDED = {
    "sit_linear_p2": ("linear", 1, {"patch_size": 2, "encoder_depth": 2, "z_dims": (64,)}),
    "sit_cosine_p4_qknorm_two_projectors": (
        "cosine",
        2,
        {"patch_size": 4, "encoder_depth": 3, "z_dims": (48, 96), "qk_norm": True},
    ),
}


@pytest.mark.parametrize("name", RECORDED)
def test_samples_match_the_published_samplers(name):
    path, seed, config = RECORDED[name]
    recorded = {key: torch.from_numpy(value) for key, value in np.load(REFERENCE / f"{name}.npz").items() if value.ndim}
    sizes = {"input_size": 16, "in_channels": 4, "hidden_size": 192, "depth": 4, "num_heads": 3, "projector_dim": 256}
    model = SiT(SiTConfig(**sizes, **config))
    model.load_state_dict(fill(model.state_dict(), seed, keep=("pos_embed",)))
    latents, noise = recorded["latents"], recorded["sde_noise"]
    compared = 0
    for key, expected in recorded.items():
        found = re.fullmatch(r"(ode_heun(\d)|sde)_cfg([\d.]+)_lo([\d.]+)_hi([\d.]+)", key)
        if not found:
            continue
        velocity = guided(model, recorded["y"], 1000, *(float(found[group]) for group in (3, 4, 5)))
        if found[1] == "sde":
            samples = euler_maruyama(velocity, latents, 5, lambda step, _: noise[step], Interpolant(path))
        else:
            samples = euler(velocity, latents, 5, heun=found[2] == "1")
        torch.testing.assert_close(samples, expected, atol=1e-4, rtol=0, msg=lambda text, key=key: f"{key}: {text}")
        compared += 1
    assert compared == 9


def test_samples_with_a_class_token_match_those_of_reg():
    values = np.load(REFERENCE / "reg.npz")
    setting = json.loads(str(values["config"]))
    recorded = {key: torch.from_numpy(values[key]) for key in values.files if key != "config"}
    names = ("input_size", "in_channels", "hidden_size", "depth", "num_heads", "encoder_depth", "projector_dim")
    sizes = {name: setting["model"][name] for name in names}
    model = EntangledSiT(SiTConfig(patch_size=2, z_dims=(48,), cls_dim=48, **sizes))
    model.load_state_dict(fill(model.state_dict(), setting["fill_seed"], keep=("pos_embed",)))
    start = model.pack(recorded["sampler_latents"], recorded["sampler_class_latents"])
    noise = [model.pack(*both) for both in zip(recorded["sampler_noise"], recorded["sampler_class_noise"], strict=True)]
    assert len(setting["sampler_runs"]) == 4
    for name, run in setting["sampler_runs"].items():
        scales = model.guidance_scales(run["cfg_scale"], run["cls_cfg_scale"])
        interval = run["guidance_low"], run["guidance_high"]
        velocity = guided(model, recorded["sampler_labels"], 1000, run["cfg_scale"], *interval, scales)
        state = euler_maruyama(velocity, start, 5, lambda step, _: noise[step].double(), Interpolant("linear"))
        latents, class_token = model.unpack(state.float())
        for found, key in ((latents, f"sde_{name}"), (class_token, f"sde_{name}_class_token")):
            torch.testing.assert_close(
                found, recorded[key], atol=1e-4, rtol=1e-4, msg=lambda text, key=key: f"{key}: {text}"
            )


MEAN, DEVIATION = 0.7, 0.3


def gaussian_velocity(path: str):
    """Return the exact velocity for data distributed as N(MEAN, DEVIATION ** 2)."""

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        alpha_t, sigma_t, d_alpha_t, d_sigma_t = Interpolant(path)(t)
        offset = (x - alpha_t * MEAN) / (alpha_t**2 * DEVIATION**2 + sigma_t**2)
        return d_alpha_t * (MEAN + alpha_t * DEVIATION**2 * offset) + d_sigma_t * sigma_t * offset

    return velocity


@pytest.mark.parametrize("path", ["linear", "cosine"])
@pytest.mark.parametrize(("heun", "order"), [(False, 1), (True, 2)])
def test_flow_of_a_gaussian_converges_to_its_closed_form(path, heun, order):
    """Noise n flows to MEAN + DEVIATION * n. Doubling the steps halves the error (Heun: quarters it)."""
    noise = torch.linspace(-2, 2, 9, dtype=torch.float64)
    exact = MEAN + DEVIATION * noise
    errors = [
        float((euler(gaussian_velocity(path), noise, steps, heun=heun) - exact).abs().max()) for steps in (100, 200)
    ]
    assert errors[1] < 0.01
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("path", ["linear", "cosine"])
def test_stochastic_samples_of_a_gaussian_have_its_mean_and_deviation(path):
    """With small steps, x_t has its exact deviation at the last noisy time 0.04. One linear step then goes to 0."""
    generator = torch.Generator().manual_seed(3)
    start = torch.randn(40_000, generator=generator, dtype=torch.float64)

    def noise(step: int, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=like.dtype)

    samples = euler_maruyama(gaussian_velocity(path), start, 400, noise, Interpolant(path))
    alpha_t, sigma_t, d_alpha_t, d_sigma_t = (float(value) for value in Interpolant(path)(torch.tensor(0.04).double()))
    variance = alpha_t**2 * DEVIATION**2 + sigma_t**2
    velocity_slope = (d_alpha_t * alpha_t * DEVIATION**2 + d_sigma_t * sigma_t) / variance
    last_step = 1 - 0.04 * (velocity_slope + 0.04 / variance)  # the score's slope is -1 / variance
    assert float(samples.mean()) == pytest.approx(MEAN, abs=0.006)
    assert float(samples.std()) == pytest.approx(last_step * variance**0.5, abs=0.004)
    assert last_step * variance**0.5 == pytest.approx(DEVIATION, abs=0.02)
    assert abs(float(torch.corrcoef(torch.stack([samples, start]))[0, 1])) < 0.5  # it is 1 for the flow


def test_straight_paths_are_exact_for_any_number_of_steps():
    noise, data = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for steps in (1, 3, 10):
        for heun in (False, True):
            torch.testing.assert_close(euler(lambda x, t: noise - data, noise, steps, heun=heun), data)


def test_stochastic_sampler_draws_float64_noise_for_all_steps_but_the_last():
    calls = []

    def noise(step: int, like: Tensor) -> Tensor:
        calls.append((step, like.dtype, tuple(like.shape)))
        return torch.zeros_like(like)

    euler_maruyama(gaussian_velocity("linear"), torch.zeros(2, 3), 4, noise, Interpolant("linear"))
    assert calls == [(step, torch.float64, (2, 3)) for step in range(3)]


def test_stochastic_sampler_takes_equal_steps_to_the_last_noisy_time_and_then_one_to_zero():
    times = []

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        times.append(round(float(t), 6))
        return torch.zeros_like(x)

    euler_maruyama(velocity, torch.zeros(1, dtype=torch.float64), 4, lambda _, like: like, Interpolant("linear"))
    assert times == [1.0, 0.68, 0.36, 0.04]


def test_stochastic_sampler_steps_along_given_times():
    times, drawn = [], []

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        times.append(round(float(t), 6))
        return torch.zeros_like(x)

    def noise(step: int, like: Tensor) -> Tensor:
        drawn.append(step)
        return torch.zeros_like(like)

    given, start = torch.tensor([1.0, 0.9, 0.5, 0.1, 0.0]), torch.ones(1, dtype=torch.float64)
    euler_maruyama(velocity, start, 1, noise, Interpolant("linear"), given)
    assert (times, drawn) == ([1.0, 0.9, 0.5, 0.1], [0, 1, 2])
    path = gaussian_velocity("linear")
    draws = torch.randn(3, 5, dtype=torch.float64)
    samples = [
        euler_maruyama(path, torch.ones(5), 4, lambda step, _: draws[step], Interpolant("linear"), steps)
        for steps in (None, sde_times(4))
    ]
    assert torch.equal(*samples)


def test_velocity_is_evaluated_in_the_noises_dtype_and_samples_are_float64():
    dtypes = set()

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        dtypes.update({x.dtype, t.dtype})
        return torch.ones_like(x)

    assert euler(velocity, torch.zeros(2), 3).dtype == torch.float64
    assert dtypes == {torch.float32}


class LabelModel:
    """A model whose velocity is the label, and which records its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[float, list[int]]] = []

    def __call__(self, x: Tensor, t: Tensor, labels: Tensor) -> tuple[Tensor, list[Tensor]]:
        assert len(x) == len(t) == len(labels)
        self.calls.append((round(float(t[0]), 3), labels.tolist()))
        return labels.to(x.dtype)[:, None].expand_as(x), []


def test_guidance_extrapolates_inside_its_interval_and_needs_one_pass_outside():
    model = LabelModel()
    velocity = guided(model, torch.tensor([1, 2]), 10, scale=3.0, low=0.3, high=0.6)
    x = torch.zeros(2, 1)
    assert velocity(x, torch.tensor(0.5)).flatten().tolist() == [10 + 3 * (1 - 10), 10 + 3 * (2 - 10)]
    assert velocity(x, torch.tensor(0.7)).flatten().tolist() == [1, 2]
    assert velocity(x, torch.tensor(0.2)).flatten().tolist() == [1, 2]
    assert model.calls == [(0.5, [1, 2, 10, 10]), (0.7, [1, 2]), (0.2, [1, 2])]


def test_the_unconditional_velocity_may_be_that_of_another_call():
    model, weak = LabelModel(), LabelModel()
    both = with_unconditional(model, weak, 10)
    velocity = guided(model, torch.tensor([1, 2]), 10, scale=3.0, both=both)
    assert velocity(torch.zeros(2, 1), torch.tensor(0.5)).flatten().tolist() == [10 + 3 * (1 - 10), 10 + 3 * (2 - 10)]
    assert (model.calls, weak.calls) == ([(0.5, [1, 2])], [(0.5, [10, 10])])


def test_scale_one_never_uses_the_null_label():
    model = LabelModel()
    euler(guided(model, torch.tensor([1]), 10), torch.zeros(1, 1), 4, heun=True)
    assert all(labels == [1] for _, labels in model.calls)
    assert len(model.calls) == 7


def test_guidance_of_heuns_second_evaluation_follows_the_start_of_the_step():
    """With guidance from 0.5 to 1, the step from 0.5 to 0.25 is guided at both ends, and the next one at neither."""
    model = LabelModel()
    velocity = guided(model, torch.tensor([1]), 10, scale=2.0, low=0.5, high=1.0)
    euler(velocity, torch.zeros(1, 1), 4, heun=True)
    both = [1, 10]
    assert model.calls == [
        (1.0, both),
        (0.75, both),
        (0.75, both),
        (0.5, both),
        (0.5, both),
        (0.25, both),
        (0.25, [1]),
    ]


def test_guidance_of_each_evaluation_follows_its_own_time_strictly_inside_the_interval():
    """With guidance from 0.25 to 0.75, both ends are outside; with a scale below 1 as well as above."""
    for scale in (0.5, 3.0):
        model = LabelModel()
        velocity = guided(model, torch.tensor([1]), 10, scale, 0.25, 0.75, each_evaluation=True)
        euler(velocity, torch.zeros(1, 1), 4, heun=True)
        both = [1, 10]
        assert model.calls == [
            (1.0, [1]),
            (0.75, [1]),
            (0.75, [1]),
            (0.5, both),
            (0.5, both),
            (0.25, [1]),
            (0.25, [1]),
        ]
        assert velocity(torch.zeros(1, 1), torch.tensor(0.5)).item() == 10 + scale * (1 - 10)


def test_an_interval_of_each_evaluation_that_ends_at_1_includes_it():
    model = LabelModel()
    velocity = guided(model, torch.tensor([1]), 10, 2.0, 0.5, 1.0, each_evaluation=True)
    euler(velocity, torch.zeros(1, 1), 2)
    assert model.calls == [(1.0, [1, 10]), (0.5, [1])]


@pytest.mark.parametrize("mode", ["euler", "heun", "sde"])
def test_the_host_waits_for_no_step(host_waits, mode):
    """The state is on another device than the times; a copy per step would wait for all earlier work of that device."""
    x, noise = torch.zeros(2, 3, device="meta"), lambda step, like: torch.zeros_like(like)
    copies = []
    for steps in (2, 7):
        velocity = guided(lambda x, t, labels: (x * t[:, None], []), torch.zeros(2, device="meta"), 10, 3.0, 0.3, 0.6)
        with host_waits() as waits:
            if mode == "sde":
                euler_maruyama(velocity, x, steps, noise, Interpolant("linear"))
            else:
                euler(velocity, x, steps, heun=mode == "heun")
        copies.append(len(waits.copies))
    assert copies == [1, 1]  # all times at once


def test_samplers_build_no_autograd_graph():
    weight = torch.ones((), requires_grad=True)
    assert not euler(lambda x, t: weight * x, torch.ones(2), 2).requires_grad
    assert not euler_maruyama(
        lambda x, t: weight * x, torch.ones(2), 2, lambda _, like: like, Interpolant("linear")
    ).requires_grad


@pytest.mark.parametrize(
    ("scale", "low", "high", "message"),
    [(0.5, 0.0, 1.0, "scale is 0.5"), (2.0, 0.8, 0.2, "0 <= low <= high <= 1"), (2.0, 0.0, 1.5, "is 0.0 to 1.5")],
)
def test_invalid_guidance_is_rejected(scale, low, high, message):
    with pytest.raises(ConfigError, match=message):
        guided(LabelModel(), torch.tensor([1]), 10, scale, low, high)


def test_zero_steps_are_rejected():
    with pytest.raises(ConfigError, match="num_steps is 0"):
        euler(gaussian_velocity("linear"), torch.zeros(1), 0)
    with pytest.raises(ConfigError, match="num_steps is 0"):
        euler_maruyama(gaussian_velocity("linear"), torch.zeros(1), 0, lambda _, like: like, Interpolant("linear"))
