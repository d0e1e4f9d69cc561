"""RAEv2's transformer: predictions, three steps of Muon and AdamW, Muon's updates, time draws and samplers."""

from __future__ import annotations

from typing import Any

import torch
from case import Case, Ema, Figures, fill, moves, weights_of
from rae_ditdh import gradients, is_input, rate
from torch import Tensor

from repa_pipe.converter import structure
from repa_pipe.diffusion.guidance import guided
from repa_pipe.diffusion.interpolant import Interpolant
from repa_pipe.diffusion.samplers import Velocity, euler
from repa_pipe.diffusion.times import falling_grid, logit_normal, shifted
from repa_pipe.models.diffusion_model import velocity_from_data
from repa_pipe.models.raev2.config import RAEv2Config
from repa_pipe.models.raev2.model import BASE, Prediction, RAEv2
from repa_pipe.pipeline.training.muon import COEFFICIENTS, Muon, orthogonalize

__all__ = ["compute", "is_input", "recognizes"]
TOLERANCES = {"published_precision_.*move.*": 6e-2, "(published_precision|muon_published)_.*": 2e-2}
IGNORED = {"condition_type", "enable_repa", "patch_size"}


def recognizes(case: Case) -> bool:
    return "base_model_coeff" in case.config


def compute(case: Case) -> Figures:
    model = _model(case)
    with torch.no_grad():
        figures = _evaluation(case, model) | _times(case) | _samples(case, model)
    figures |= _muon(case) | _training(case, model)
    half = _training(case, _model(case), half=True)
    return figures | {
        key: half[key.removeprefix("published_precision_")] for key in case.matching(r"published_precision_.*")
    }


def _model(case: Case) -> RAEv2:
    config = case.config
    settings = {key: value for key, value in config["model"].items() if key not in IGNORED}
    side, same = config["model"]["patch_size"]
    assert side == same
    if not config["model"]["enable_repa"]:
        settings["repa_layer_depth"] = None
    model = RAEv2(structure(settings | {"patch_size": side, "t_eps": config["t_eps"]}, RAEv2Config, "config"))
    scales = {r".*\.W": config["W_scale"], "": config["matrix_scale"]}
    fill(model, config["fill_seed"], config["fill_keep"], scales)
    return model


def _losses(case: Case, prediction: Tensor, data: Tensor, t: Tensor) -> Tensor:
    """Return the mean squared error of the velocity per sample, computed from that of the data."""
    limit = t.clamp(min=case.config["t_eps"])
    return (prediction - data).square().flatten(1).mean(dim=1) / limit.square()


def _evaluation(case: Case, model: RAEv2) -> Figures:
    data, noise, t, labels = case["step0_latents"], case["step0_noise"], case["eval_t"], case["step0_labels"]
    x_t, _ = Interpolant("linear").interpolate(data, noise, t)
    predicted: Prediction = model.predict(x_t, t, labels)
    time, eps = model.t_embedder(t, torch.float32), case.config["t_eps"]
    return {
        "eval_xt": x_t,
        "eval_x": predicted.data,
        "eval_x_base": predicted.base,
        "eval_repa_projected": predicted.projected,
        "eval_x_null": model.predict(x_t, t, torch.full_like(labels, model.config.num_classes)).data,
        "eval_encoder_sequence": model.encode(x_t, time, labels)[0],
        "eval_velocity": velocity_from_data(x_t, predicted.data, t, eps),
        "eval_velocity_target": velocity_from_data(x_t, data, t, eps),
        "eval_loss_per_sample": _losses(case, predicted.data, data, t),
        "eval_loss_base_per_sample": _losses(case, predicted.base, data, t),
        "eval_time_embedding": time,
        "eval_condition_tokens": model.condition_tokens(time, labels),
        "encoder_rope_cos": model.enc_rope.freqs_cos,
        "encoder_rope_sin": model.enc_rope.freqs_sin,
    }


def _draw(case: Case, normal: Tensor) -> Tensor:
    name, mean, std = case.config["time_dist_type"].split("_")
    assert name == "logit-normal"
    return shifted(logit_normal(normal, float(mean), float(std)), case.config["time_dist_shift"])


def _times(case: Case) -> Figures:
    steps = {f"step{step}_t": _draw(case, case[f"step{step}_time_normal"]) for step in case.steps()}
    return steps | {"drawn_t": _draw(case, case["drawn_normal"])}


def _samples(case: Case, model: RAEv2) -> Figures:
    config, labels = case.config, case["sample_labels"]
    figures: Figures = {f"grid_n{config['num_steps']}": _grid(case, config["num_steps"])}
    for key in case.matching(r"ode_n\d+_sampler\d+"):
        count, number = (int(part) for part in key.removeprefix("ode_n").split("_sampler"))
        settings = config["samplers"][number]
        velocity = _guided(model, labels, settings)
        figures[key] = euler(velocity, case["sample_noise"], count, times=_grid(case, count))
    return figures


def _guided(model: RAEv2, labels: Tensor, settings: dict[str, Any]) -> Velocity:
    """Guide by the base head; then, if recorded, from the velocity without labels, whose own scale may differ."""
    null_label, null_scale = model.config.num_classes, settings.get("uncond_ig")

    def both(x_t: Tensor, t: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        velocity, _, tapped = model(x_t, t, labels, taps=(BASE,))
        return velocity, tapped[BASE]

    ig_low, ig_high = settings.get("ig_interval", (0.0, 1.0))
    if settings["cfg"] <= 1 and null_scale is None:
        return guided(model, labels, null_label, max(1.0, settings["ig"]), ig_low, ig_high, both=both)

    def internal(x_t: Tensor, t: Tensor, labels: Tensor, scale: float) -> Tensor:
        velocity, base = both(x_t, t, labels)
        is_on = settings["ig"] > 1 or null_scale not in {None, 1}
        return base + scale * (velocity - base) if is_on and ig_low <= float(t[0]) <= ig_high else velocity

    def branches(x_t: Tensor, t: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        null = torch.full_like(labels, null_label)
        scales = settings["ig"], settings["ig"] if null_scale is None else null_scale
        return internal(x_t, t, labels, scales[0]), internal(x_t, t, null, scales[1])

    def conditional(x_t: Tensor, t: Tensor, labels: Tensor) -> tuple[Tensor]:
        return (internal(x_t, t, labels, settings["ig"]),)

    low, high = settings.get("cfg_interval", (0.0, 1.0))
    return guided(conditional, labels, null_label, max(1.0, settings["cfg"]), low, high, both=branches)


def _grid(case: Case, steps: int) -> Tensor:
    return falling_grid(steps + 1, 0.0, case.config["time_dist_shift"])


def _muon(case: Case) -> Figures:
    settings = case.config["muon_matrices"]
    figures: Figures = {"muon_coefficients": torch.tensor(COEFFICIENTS)}
    for number in range(len(settings["shapes"])):
        for prefix, half in (("muon_after", False), ("muon_published_precision_after", True)):
            weight = torch.nn.Parameter(case[f"muon_weight_{number}"].clone())
            muon = Muon([weight], settings["lr"], settings["momentum"], settings["weight_decay"], half)
            for step in range(settings["steps"]):
                weight.grad = case[f"muon_gradient_{number}_step{step}"].clone()
                muon.step()
                figures[f"{prefix}_{number}_step{step}"] = weight.detach().clone()
        first = case[f"muon_gradient_{number}_step0"] * (1 + settings["momentum"])
        figures[f"muon_orthogonalized_gradient_{number}"] = orthogonalize(first)
    return figures


def _training(case: Case, model: RAEv2, half: bool = False) -> Figures:
    settings, before, figures = case.config["training"], weights_of(model), {}
    options, schedule = settings["optimizer"], settings["scheduler"]
    parameters = list(model.parameters())
    muon = Muon(
        [each for each in parameters if each.ndim == 2],
        options["lr"],
        options["momentum"],
        options["weight_decay"],
        half,
    )
    others = [each for each in parameters if each.ndim != 2]
    adamw = torch.optim.AdamW(others, options["lr"], options["betas"], options["eps"], options["weight_decay"])
    ema, rows, rates = Ema(model, settings["ema_decay"]), [], []
    for step in case.steps():
        losses = _step_losses(case, model, step, figures)
        for optimizer in (muon, adamw):
            optimizer.zero_grad()
        losses[-1].backward()
        if step == 0:
            figures |= gradients(case, model)
        norm = torch.nn.utils.clip_grad_norm_(parameters, settings["clip_grad"] or torch.inf)
        rates.append([rate(schedule, step)])
        for optimizer in (muon, adamw):
            for group in optimizer.param_groups:
                group["lr"] = rates[-1][0]
            optimizer.step()
        ema.update(model)
        rows.append([each.item() for each in (*losses, norm)])
    figures |= {"loss_base_repa_total_gradnorm": torch.tensor(rows), "lr": torch.tensor(rates)}
    after = weights_of(model)
    figures |= moves(case, before, after) | moves(case, before, ema.weights, "ema_move.")
    return figures


def _step_losses(case: Case, model: RAEv2, step: int, figures: Figures) -> list[Tensor]:
    """Return the recorded losses of a step, the total last; add those per sample to the figures."""
    config, data = case.config, case[f"step{step}_latents"]
    t = _draw(case, case[f"step{step}_time_normal"])
    x_t, _ = Interpolant("linear").interpolate(data, case[f"step{step}_noise"], t)
    dropped = case[f"step{step}_label_dropped"].bool()
    labels = torch.where(dropped, model.config.num_classes, case[f"step{step}_labels"])
    predicted: Prediction = model.predict(x_t, t, labels)
    base = _losses(case, predicted.base, data, t)
    both = _losses(case, predicted.data, data, t) + config["base_model_coeff"] * base
    figures[f"step{step}_loss_with_base_per_sample"], figures[f"step{step}_loss_base_per_sample"] = both, base
    repa = torch.zeros(())
    if predicted.projected is not None:
        repa = config["repa_coeff"] * (predicted.projected - case[f"step{step}_repa_target"]).square().mean()
    return [both.mean(), base.mean(), repa, both.mean() + repa]
