"""LightningDiT: the model, its loss, three training steps, its time draws and its sampler."""

from __future__ import annotations

import re

import torch
from case import Case, Ema, Figures, fill, moves, optimize, trainable, weights_of
from torch import Tensor
from torch.nn.functional import cosine_similarity

from repa_pipe.converter import structure
from repa_pipe.diffusion.guidance import GuidedVelocity, guided
from repa_pipe.diffusion.samplers import euler
from repa_pipe.diffusion.times import falling_grid, logit_normal
from repa_pipe.models.lightningdit.config import LightningDiTConfig
from repa_pipe.models.lightningdit.model import LightningDiT

INPUTS = (
    r"step\d+_(latents|noise|t|labels|label_dropped)|variant_.*_[xty]|sample_(noise|labels)|latents_(mean|std)"
    "|drawn_normal"
)


def is_input(case: Case, name: str) -> bool:
    return re.fullmatch(INPUTS, name) is not None


def recognizes(case: Case) -> bool:
    return "use_swiglu" in case.config.get("model", {}) and "latent_multiplier" in case.config


def _model(case: Case, settings: dict) -> LightningDiT:
    settings = {key: value for key, value in settings.items() if key not in {"learn_sigma", "use_checkpoint"}}
    model = LightningDiT(structure(settings, LightningDiTConfig, "config"))
    fill(model, case.config["fill_seed"], case.config["keep"])
    return model


def _predict(model: LightningDiT, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    """Return the published velocity, data - noise, at published times, which are 1 at the data."""
    return -model(x, 1 - t, labels)[0]


def compute(case: Case) -> Figures:
    model = _model(case, case.config["model"])
    figures: Figures = {"rope_cos": model.feat_rope.freqs_cos, "rope_sin": model.feat_rope.freqs_sin}
    with torch.no_grad():
        figures |= _evaluation(case, model) | _variants(case) | _times(case) | _samples(case, model)
    return figures | _training(case, model)


def _path(case: Case, step: int) -> tuple[Tensor, Tensor]:
    data, noise = case[f"step{step}_latents"], case[f"step{step}_noise"]
    t = case[f"step{step}_t"].reshape(-1, 1, 1, 1)
    return t * data + (1 - t) * noise, data - noise


def _evaluation(case: Case, model: LightningDiT) -> Figures:
    x_t, target = _path(case, 0)
    t, labels = case["step0_t"], case["step0_labels"]
    null = torch.full_like(labels, case.config["null_label"])
    return {
        "eval_xt": x_t,
        "eval_target": target,
        "eval_v": _predict(model, x_t, t, labels),
        "eval_v_null": _predict(model, x_t, t, null),
    }


def _variants(case: Case) -> Figures:
    figures = {}
    for name, settings in case.config["variants"].items():
        x, t, y = (case[f"variant_{name}_{each}"] for each in "xty")
        figures[f"variant_{name}_v"] = _predict(_model(case, settings), x, t, y)
    return figures


def _times(case: Case) -> Figures:
    normal, mean = case["drawn_normal"], case.config["shifted_mu"]
    return {
        "drawn_t_lognormal": logit_normal(normal, 0, 1),
        "drawn_t_lognormal_shifted": logit_normal(normal, mean, 1),
    }


def _guided(case: Case, model: LightningDiT, labels: Tensor, sampler: dict) -> GuidedVelocity:
    """Guide the first channels only, and not near the noise."""
    high = 1 - sampler["start"] if sampler["interval"] is True else 1.0
    scales = torch.ones(model.config.in_channels, 1, 1)
    scales[: case.config["cfg_channels"]] = sampler["cfg"]
    return guided(model, labels, case.config["null_label"], sampler["cfg"], 0.0, high, scales)


def _samples(case: Case, model: LightningDiT) -> Figures:
    config, noise, labels = case.config, case["sample_noise"], case["sample_labels"]
    figures: Figures = {}
    for sampler in config["samplers"]:
        count, shift = sampler["num_steps"], sampler["shift"]
        times = falling_grid(count, 0.0, 1 / (shift or 1))
        figures[f"grid_n{count}_shift{shift}"] = 1 - times
        x = euler(_guided(case, model, labels, sampler), noise, count, times=times)
        name = (
            f"ode_n{count}_shift{shift}_cfg{sampler['cfg']}_start{sampler['start']}_interval{int(sampler['interval'])}"
        )
        figures[name] = x
        figures[f"{name}_denormalised"] = x * case["latents_std"] / config["latent_multiplier"] + case["latents_mean"]
    for key in case.matching(r"forward_with_cfg_t.*"):
        t = torch.tensor(float(key.removeprefix("forward_with_cfg_t")))
        figures[key] = _published_guided_call(case, model, noise, t, labels)
    return figures


def _published_guided_call(case: Case, model: LightningDiT, noise: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    """Return the velocities of the labels and of the null label, guided channels of the former in both."""
    steered = -_guided(case, model, labels, case.config["samplers"][1])(noise, 1 - t)
    null = torch.full_like(labels, case.config["null_label"])
    both = torch.cat([steered, _predict(model, noise, t.expand(len(noise)), null)])
    channels = case.config["cfg_channels"]
    both[len(noise) :, :channels] = steered[:, :channels]
    return both


def _training(case: Case, model: LightningDiT) -> Figures:
    config, before = case.config, weights_of(model)
    trained = trainable(model)
    optimizer = torch.optim.AdamW(trained, config["lr"], config["betas"], config["adam_eps"], config["weight_decay"])
    ema, rows, figures = Ema(model, config["ema_decay"]), [], {}
    for step in case.steps():
        x_t, target = _path(case, step)
        labels = torch.where(case[f"step{step}_label_dropped"].bool(), config["null_label"], case[f"step{step}_labels"])
        velocity = _predict(model, x_t, case[f"step{step}_t"], labels)
        losses = (velocity - target).square().flatten(1).mean(dim=1)
        cosines = (1 - cosine_similarity(velocity, target, dim=1)).flatten(1).mean(dim=1)
        total = losses.mean() + cosines.mean()
        norm = optimize(total, optimizer, config["max_grad_norm"])
        ema.update(model)
        rows.append([each.item() for each in (losses.mean(), cosines.mean(), total, norm)])
        figures |= {f"step{step}_loss_per_sample": losses, f"step{step}_cosine_loss_per_sample": cosines}
    figures["mse_cosine_total_gradnorm"] = torch.tensor(rows)
    figures |= moves(case, before, weights_of(model)) | moves(case, before, ema.weights, "ema_move.")
    return figures
