"""Three optimizer steps of REPA's training program, reproduced with this package's building blocks."""

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

from repa_pipe.diffusion.interpolant import Interpolant
from repa_pipe.diffusion.loss import alignment_loss, denoising_loss
from repa_pipe.diffusion.posterior import sample_posterior
from repa_pipe.models.ema import Ema
from repa_pipe.models.sit import SiT, SiTConfig

REFERENCE = Path(__file__).parents[1] / "reference"
fill = runpy.run_path(str(REFERENCE / "weights.py"))["fill"]

LATENTS_SCALE = torch.full((1, 4, 1, 1), 0.18215)


@pytest.fixture(scope="module")
def recorded() -> dict[str, torch.Tensor]:
    return {key: torch.from_numpy(value) for key, value in np.load(REFERENCE / "train_three_steps.npz").items()}


@pytest.fixture(scope="module")
def trained(recorded):
    config = SiTConfig(
        input_size=16,
        patch_size=2,
        in_channels=4,
        hidden_size=128,
        depth=4,
        num_heads=2,
        encoder_depth=2,
        z_dims=(64,),
        projector_dim=192,
    )
    model = SiT(config)
    model.load_state_dict(fill(model.state_dict(), 21, keep=("pos_embed",)))
    initial = {name: value.clone() for name, value in model.state_dict().items()}
    ema = Ema(model, decay=0.9999)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    log = []
    for step in range(3):
        moments, features, labels, posterior_noise, t, noise = (
            recorded[f"step{step}_{name}"]
            for name in ("moments", "features", "labels", "posterior_noise", "t", "noise")
        )
        latents = sample_posterior(moments, posterior_noise, LATENTS_SCALE, torch.zeros(1, 4, 1, 1))
        x_t, target = Interpolant("linear").interpolate(latents, noise, t)
        velocity, projected = model(x_t, t, labels)
        denoising = denoising_loss(velocity, target).mean()
        alignment = alignment_loss(projected, [features])
        optimizer.zero_grad()
        (denoising + 0.5 * alignment).backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        ema.update(model)
        log.append([denoising.item(), alignment.item(), norm.item()])
    return initial, model.state_dict(), ema.model.state_dict(), torch.tensor(log)


def test_losses_and_gradient_norms_of_three_steps_match_the_published_program(trained, recorded):
    *_, log = trained
    torch.testing.assert_close(log, recorded["denoising_proj_gradnorm"], atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("which", ["model", "ema"])
def test_weights_after_three_steps_match_the_published_program(trained, recorded, which):
    initial, model, ema, _ = trained
    state = {"model": model, "ema": ema}[which]
    names = [key.removeprefix(f"{which}.") for key in recorded if key.startswith(f"{which}.")]
    assert len(names) == 5
    for name in names:
        actual, published = state[name].flatten()[:2000], recorded[f"{which}.{name}"]
        torch.testing.assert_close(actual, published, atol=1e-6, rtol=0, msg=lambda text, name=name: f"{name}: {text}")
        moved = actual - initial[name].flatten()[:2000]
        published_move = recorded[f"{which}_minus_initial.{name}"]
        assert (moved - published_move).norm() <= 0.01 * published_move.norm(), name
