"""REPA-E: SiT on the latents of an end-to-end tuned VAE, three steps of phase two, one of phase one, its samplers."""

from __future__ import annotations

import re
from functools import partial

import torch
from case import Case, Ema, Figures, fill, moves, optimize, trainable, weights_of
from torch import Tensor, nn

from repa_pipe.diffusion.interpolant import Interpolant
from repa_pipe.diffusion.loss import alignment_loss, denoising_loss
from repa_pipe.diffusion.normalization import Normalization
from repa_pipe.diffusion.samplers import Noise, euler, euler_maruyama, guided
from repa_pipe.models.sit import SiT, SiTConfig

INPUTS = (
    r"latents_(scale|bias)|step\d+_(moments|posterior_noise|labels|noise|t|features_\d+|label_dropped)|drawn_raw"
    "|joint_label_dropped|sample_(noise|labels)|sde_noise"
)
UNUSED = {"decoder_hidden_size", "bn_momentum", "fused_attn"}


def recognizes(case: Case) -> bool:
    return "bn" in case.config and "proj_coeff" in case.config


def is_input(case: Case, name: str) -> bool:
    return re.fullmatch(INPUTS, name) is not None


def compute(case: Case) -> Figures:
    with torch.no_grad():
        figures = _evaluation(case) | _samples(case)
    return figures | _training(case) | _joint_step(case)


def _model(case: Case) -> SiT:
    settings = {key: value for key, value in case.config["model"].items() if key not in UNUSED}
    model = SiT(SiTConfig.from_dict(settings))
    fill(model, case.config["fill_seed"], case.config["keep"])
    return model


def _normalization(case: Case) -> Normalization:
    scale, bias = case["latents_scale"], case["latents_bias"]
    return Normalization(mean=bias, var=(1 / scale) ** 2, eps=case.config["bn"]["eps"], eps_when_restoring=False)


def _latents(case: Case, step: int) -> Tensor:
    mean, std = case[f"step{step}_moments"].chunk(2, dim=1)
    return mean + std * case[f"step{step}_posterior_noise"]


def _features(case: Case, step: int) -> list[Tensor]:
    return [case[name] for name in case.matching(rf"step{step}_features_\d+")]


def _labels(case: Case, step: int, dropped: str) -> Tensor:
    return torch.where(case[dropped].bool(), case.config["model"]["num_classes"], case[f"step{step}_labels"])


def _interpolant(case: Case) -> Interpolant:
    return Interpolant(case.config["path_type"])


def _evaluation(case: Case) -> Figures:
    model, interpolant = _model(case), _interpolant(case)
    normalized, labels = _normalization(case).normalize(_latents(case, 0)), case["step0_labels"]
    x_t, target = interpolant.interpolate(normalized, case["step0_noise"], case["step0_t"])
    velocity, projected = model(x_t, case["step0_t"], labels)
    figures: Figures = {
        "eval_normalised": normalized,
        "eval_v": velocity,
        "eval_denoising_loss": denoising_loss(velocity, target),
        "eval_proj_loss": alignment_loss(projected, _features(case, 0)),
        "inference_v": model(x_t, case["step0_t"], labels, project=False)[0],
    }
    figures |= {f"eval_projected_{number}": tokens for number, tokens in enumerate(projected)}
    raw = case["drawn_raw"]
    t = raw if case.config["weighting"] == "uniform" else interpolant.lognormal_time(raw)
    normalized = _normalization(case).normalize(_latents(case, 1))
    x_t, target = interpolant.interpolate(normalized, case["step1_noise"], t)
    velocity, projected = model(x_t, t, case["step1_labels"])
    return figures | {
        "drawn_t": t,
        "drawn_denoising_loss": denoising_loss(velocity, target),
        "drawn_proj_loss": alignment_loss(projected, _features(case, 1)),
    }


def _samples(case: Case) -> Figures:
    config, model, interpolant = case.config, _model(case), _interpolant(case)
    noise, labels, figures = case["sample_noise"], case["sample_labels"], {}
    for mode, heun, scale, low, high in config["samplers"]:
        velocity = guided(partial(model, project=False), labels, config["model"]["num_classes"], scale, low, high)
        if mode == "ode":
            name = f"ode_heun{heun}_cfg{scale}_lo{low}_hi{high}"
            latents = euler(velocity, noise, config["sample_steps"], bool(heun))
        else:
            name = f"sde_cfg{scale}_lo{low}_hi{high}"
            latents = euler_maruyama(
                velocity,
                noise,
                config["sample_steps"],
                _recorded_noise(case),
                interpolant,
            )
        figures |= {name: latents, f"{name}_denormalised": _normalization(case).restore(latents)}
    return figures


def _recorded_noise(case: Case) -> Noise:
    draws = case["sde_noise"]
    return lambda step, like: draws[step]


def _optimizer(case: Case, parameters: list[nn.Parameter]) -> torch.optim.AdamW:
    config = case.config
    return torch.optim.AdamW(parameters, config["lr"], config["betas"], config["adam_eps"], config["weight_decay"])


def _losses(case: Case, model: SiT, step: int, data: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the denoising loss per sample and the alignment loss."""
    x_t, target = _interpolant(case).interpolate(data, case[f"step{step}_noise"], case[f"step{step}_t"])
    velocity, projected = model(x_t, case[f"step{step}_t"], labels)
    return denoising_loss(velocity, target), alignment_loss(projected, _features(case, step))


def _training(case: Case) -> Figures:
    config, model = case.config, _model(case)
    before, ema, rows, figures = weights_of(model), Ema(model, config["ema_decay"]), [], {}
    trained = trainable(model)
    optimizer = _optimizer(case, trained)
    for step in case.steps():
        data = _normalization(case).normalize(_latents(case, step))
        labels = _labels(case, step, f"step{step}_label_dropped")
        denoising, projection = _losses(case, model, step, data, labels)
        total = denoising.mean() + config["proj_coeff"] * projection
        norm = optimize(total, optimizer, config["max_grad_norm"])
        ema.update(model)
        rows.append([each.item() for each in (denoising.mean(), projection, total, norm)])
        figures[f"step{step}_denoising_per_sample"] = denoising
    figures |= {"denoising_proj_total_gradnorm": torch.tensor(rows)}
    figures |= {"after_running_mean": case["latents_bias"].flatten()}
    figures |= {"after_running_var": (1 / case["latents_scale"]).square().flatten()}
    return figures | moves(case, before, weights_of(model)) | moves(case, before, ema.weights, "ema_move.")


def _joint_step(case: Case) -> Figures:
    """Return the figures of a step of phase one, which repa-pipe does not train: batch statistics, all parameters."""
    config, model = case.config, _model(case).requires_grad_(True)
    scale, bias, settings = case["latents_scale"], case["latents_bias"], config["bn"]
    norm = nn.BatchNorm2d(scale.shape[1], settings["eps"], config["model"]["bn_momentum"], affine=settings["affine"])
    norm.load_state_dict(
        {
            "running_mean": bias.flatten(),
            "running_var": (1 / scale).square().flatten(),
            "num_batches_tracked": torch.tensor(0),
        }
    )
    before, parameters = weights_of(model), list(model.parameters())
    optimizer = _optimizer(case, parameters)
    denoising, projection = _losses(case, model, 1, norm(_latents(case, 1)), _labels(case, 1, "joint_label_dropped"))
    (denoising.mean() + config["proj_coeff"] * projection).backward()
    size = torch.nn.utils.clip_grad_norm_(parameters, config["max_grad_norm"])
    gradients = {name: value.grad.flatten()[:2000].clone() for name, value in model.named_parameters()}
    optimizer.step()
    figures = {
        "joint_denoising_loss": denoising,
        "joint_proj_loss": projection,
        "joint_gradnorm": size,
        "joint_running_mean": norm.running_mean,
        "joint_running_var": norm.running_var,
        "joint_num_batches_tracked": norm.num_batches_tracked,
    }
    prefix = "joint_clipped_gradient."
    figures |= {key: gradients[key.removeprefix(prefix)] for key in case.matching(re.escape(prefix) + ".*")}
    return figures | moves(case, before, weights_of(model), "joint_move.")
