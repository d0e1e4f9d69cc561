import math
from pathlib import Path

import numpy as np
import pytest
import torch

from repa_pipe.diffusion.interpolant import Interpolant
from repa_pipe.diffusion.loss import (
    alignment_loss,
    attention_loss,
    contrastive_loss,
    denoising_loss,
    nt_xent_loss,
    previous_samples,
    spatial_zscore,
)
from repa_pipe.errors import ConfigError

REFERENCE = Path(__file__).parents[1] / "reference"


def load_recorded(name: str) -> dict[str, torch.Tensor]:
    return {key: torch.from_numpy(np.asarray(value)) for key, value in np.load(REFERENCE / f"{name}.npz").items()}


def tokens(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("name", "path", "encoders"),
    [("sit_linear_p2", "linear", 1), ("sit_cosine_p4_qknorm_two_projectors", "cosine", 2)],
)
def test_losses_match_the_published_code(name, path, encoders):
    recorded = load_recorded(name)
    x_t, target = Interpolant(path).interpolate(recorded["x0"], recorded["eps"], recorded["t"])
    torch.testing.assert_close(x_t, recorded["xt"], atol=1e-6, rtol=0)
    torch.testing.assert_close(denoising_loss(recorded["v"], target), recorded["denoising_loss"], atol=1e-5, rtol=0)
    alignment = alignment_loss(
        [recorded[f"projected_{number}"] for number in range(encoders)],
        [recorded[f"features_{number}"] for number in range(encoders)],
    )
    torch.testing.assert_close(alignment, recorded["proj_loss"], atol=1e-6, rtol=0)


def test_denoising_loss_is_the_mean_square_per_sample():
    velocity, target = torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 4, 4)
    target[1] *= 3
    assert denoising_loss(velocity, target).tolist() == [1.0, 9.0]
    assert denoising_loss(velocity.bfloat16(), target.bfloat16()).dtype == torch.float32


def test_contrastive_loss_compares_with_the_target_of_the_partner():
    velocity, target = (
        torch.tensor([[0.0, 0.0], [1.0, 1.0], [2.0, 0.0]]),
        torch.tensor([[1.0, 3.0], [2.0, 2.0], [4.0, 4.0]]),
    )
    assert contrastive_loss(velocity, target, torch.tensor([2, 0, 0])).tolist() == [16.0, 2.0, 5.0]
    assert contrastive_loss(velocity.bfloat16(), target, torch.tensor([0, 0, 0])).dtype == torch.float32
    partner = previous_samples(3, velocity.device)
    assert partner.tolist() == [2, 0, 1]
    assert contrastive_loss(velocity, target, partner).tolist() == [16.0, 2.0, 2.0]


def test_alignment_loss_is_the_negative_mean_cosine_over_encoders():
    same, opposite = tokens(2, 5, 8), tokens(2, 5, 6, seed=1)
    assert float(alignment_loss([3 * same], [0.1 * same])) == pytest.approx(-1)
    assert float(alignment_loss([same, -opposite], [same, opposite])) == pytest.approx(0, abs=1e-6)
    half = same.clone()
    half[:, ::2] *= -1  # patches 0, 2, 4 of 5
    assert float(alignment_loss([half], [same])) == pytest.approx(1 / 5)


def test_tokens_whose_squares_exceed_float16_align():
    """300 ** 2 is above float16's largest number and 0.0001 ** 2 below its smallest."""
    for size in (300.0, 1e-4):
        same = torch.full((1, 4, 768), size, dtype=torch.float16)
        assert float(alignment_loss([same], [same])) == pytest.approx(-1, abs=1e-5)


@pytest.mark.parametrize("loss", [alignment_loss, nt_xent_loss])
def test_losses_are_float32_under_autocast(loss):
    projected, stored = tokens(2, 5, 8), tokens(2, 5, 8, seed=1)
    exact = loss([projected], [stored])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = loss([projected], [stored])
    assert mixed.dtype == torch.float32
    assert torch.equal(mixed, exact)


@pytest.mark.parametrize("loss", [alignment_loss, nt_xent_loss])
def test_zero_tokens_of_a_quarantined_sample_keep_gradients_finite(loss):
    projected = tokens(2, 5, 8).requires_grad_()
    stored = tokens(2, 5, 8, seed=1)
    stored[1] = 0
    with torch.no_grad():
        projected[0, 0] = 0
    loss([projected], [stored]).backward()
    assert projected.grad.isfinite().all()
    assert projected.grad.any()


@pytest.mark.parametrize("loss", [alignment_loss, nt_xent_loss])
def test_mismatched_encoders_are_rejected(loss):
    good = tokens(2, 5, 8)
    with pytest.raises(ConfigError, match=r"have shapes \[\[2, 5, 8\]\]; .* \[\[2, 5, 6\]\], .*z_dims"):
        loss([good], [tokens(2, 5, 6)])
    with pytest.raises(ConfigError, match=r"have shapes \[\[2, 5, 8\]\]; .* \[\[2, 5, 8\], \[2, 5, 8\]\]"):
        loss([good], [good, good])
    with pytest.raises(ConfigError, match="at least one"):
        loss([], [])


def test_nt_xent_of_orthogonal_patches_has_its_closed_form():
    """Each view has cosine 1 with its partner and 0 with its 2N - 2 negatives."""
    patches = torch.eye(6)[None].repeat(3, 1, 1)
    for temperature in (0.1, 0.5):
        expected = math.log(math.exp(1 / temperature) + 10) - 1 / temperature
        loss = nt_xent_loss([5 * patches], [patches], temperature)
        assert float(loss) == pytest.approx(expected, abs=1e-6)


def test_nt_xent_matches_simclrs_equation():
    """Equation 1 of arXiv 2002.05709, term by term, for one image of 4 patches."""
    projected, stored = tokens(1, 4, 8), tokens(1, 4, 8, seed=1)
    views = torch.nn.functional.normalize(torch.cat([projected[0], stored[0]]), dim=1)
    terms = []
    for i in range(8):
        partner = (i + 4) % 8
        others = [math.exp(float(views[i] @ views[k]) / 0.3) for k in range(8) if k != i]
        terms.append(-math.log(math.exp(float(views[i] @ views[partner]) / 0.3) / sum(others)))
    assert float(nt_xent_loss([projected], [stored], 0.3)) == pytest.approx(sum(terms) / 8, rel=1e-5)


def test_nt_xent_of_a_batch_is_the_mean_over_samples():
    projected, stored = tokens(4, 5, 8), tokens(4, 5, 8, seed=1)
    parts = [nt_xent_loss([projected[rows]], [stored[rows]]) for rows in (slice(0, 2), slice(2, 4))]
    torch.testing.assert_close(nt_xent_loss([projected], [stored]), sum(parts) / 2)


def test_nt_xent_needs_a_positive_temperature():
    with pytest.raises(ConfigError, match="temperature is 0"):
        nt_xent_loss([tokens(1, 4, 8)], [tokens(1, 4, 8)], 0)


@pytest.mark.parametrize(("gamma", "key"), [(1.0, "zscore_gamma1"), (0.6, "zscore_gamma06")])
def test_spatial_zscore_matches_the_published_code(gamma, key):
    recorded = load_recorded("irepa_spatial")
    torch.testing.assert_close(spatial_zscore(recorded["features"], gamma), recorded[key], atol=1e-5, rtol=0)


def test_spatial_zscore_gives_each_channel_mean_zero_and_deviation_one():
    normalized = spatial_zscore((3 + 10 * tokens(2, 50, 4)).half(), 1.0)
    assert normalized.dtype == torch.float32
    torch.testing.assert_close(normalized.mean(dim=1), torch.zeros(2, 4), atol=1e-5, rtol=0)
    torch.testing.assert_close(normalized.var(dim=1, correction=1), torch.ones(2, 4), atol=1e-5, rtol=0)


def test_spatial_zscore_of_zero_tokens_is_zero():
    assert not spatial_zscore(torch.zeros(1, 4, 8), 1.0).any()


def test_attention_loss_is_the_cross_entropy_of_maps_averaged_over_blocks():
    student, teacher = [3 * tokens(2, 3, 5, 5, seed=number) for number in (0, 1)], [tokens(2, 3, 5, 5, seed=2)] * 2
    maps = [np.exp(each.double().numpy()) for each in (*student, *teacher)]
    ours, others = ([each / each.sum(-1, keepdims=True) for each in half] for half in (maps[:2], maps[2:]))
    by_block = [-(theirs * np.log(own)).sum(-1).mean() for own, theirs in zip(ours, others, strict=True)]
    assert attention_loss(student, teacher).item() == pytest.approx(np.mean(by_block), rel=1e-6)


def test_attention_loss_of_equal_maps_is_their_entropy_and_its_gradient_is_zero():
    logits = tokens(1, 2, 4, 4).requires_grad_()
    loss = attention_loss([logits], [logits.detach()])
    maps = logits.softmax(-1)
    assert loss.item() == pytest.approx(-(maps * maps.log()).sum(-1).mean().item(), rel=1e-6)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient.abs().max() < 1e-8


def test_attention_loss_is_finite_for_maps_that_underflow_and_float32_for_half_precision():
    student = torch.tensor([[[[0.0, 1000.0]]]], dtype=torch.float16)
    loss = attention_loss([student], [torch.zeros(1, 1, 1, 2)])
    assert loss.dtype == torch.float32
    assert loss.item() == 500.0


@pytest.mark.parametrize("teacher", [[], [torch.zeros(1, 2, 4, 4)], [torch.zeros(1, 3, 4, 4)] * 2])
def test_attention_loss_refuses_other_blocks_or_heads(teacher):
    with pytest.raises(ConfigError, match="expected those of the encoder"):
        attention_loss([torch.zeros(1, 2, 4, 4)] * (2 if teacher else 0), teacher)
