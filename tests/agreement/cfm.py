"""Contrastive flow matching: four settings of its loss, training steps of two, samples without interference."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from case import Case, Ema, Figures, fill, moves, optimize, trainable, weights_of
from torch import Tensor

from repa_pipe.diffusion.guidance import guided
from repa_pipe.diffusion.interpolant import Interpolant
from repa_pipe.diffusion.loss import alignment_loss, contrastive_loss, denoising_loss
from repa_pipe.diffusion.samplers import euler_maruyama
from repa_pipe.models.sit import SiT, SiTConfig
from repa_pipe.pipeline.training.terms.contrast import partners

UNUSED = {"decoder_hidden_size", "use_cfg", "fused_attn"}


def recognizes(case: Case) -> bool:
    return case.config.get("method") == "cfm"


def is_input(case: Case, name: str) -> bool:
    return name in case.config["input_keys"]


def _model(case: Case, seed: int) -> SiT:
    settings = {key: value for key, value in case.config["model"].items() if key not in UNUSED}
    model = SiT(SiTConfig.from_dict(settings))
    fill(model, seed, case.config["keep"])
    return model


def compute(case: Case) -> Figures:
    model, figures = _model(case, case.config["fill_seed"]), {}
    with torch.no_grad():
        for name, settings in case.config["variants"].items():
            found = _step(case, model, settings, "")
            shared = {"labels_after_drop", "projected", "partner_index"}  # recorded once, of the first setting
            figures |= {f"{name}_{key}": value for key, value in found.items() if key not in shared}
            figures = {key: found[key] for key in shared} | figures
        figures |= _samples(case, model)
    for name in case.config["training_variants"]:
        figures |= _training(case, name)
    return figures


def _step(case: Case, model: SiT, settings: dict[str, Any], prefix: str) -> Figures:
    config = case.config
    sizes, interpolant = config["model"], Interpolant(settings["path_type"])
    drop = case[f"{prefix}label_drop_uniform"] < sizes["class_dropout_prob"]
    labels = torch.where(drop, sizes["num_classes"], case[f"{prefix}labels"])
    partner = partners(case[f"{prefix}partner_draw"])
    x_t, target = interpolant.interpolate(case[f"{prefix}latents"], case[f"{prefix}noise"], case[f"{prefix}t"])
    velocity, projected = model(x_t, case[f"{prefix}t"], labels)
    flow, contrast = denoising_loss(velocity, target), contrastive_loss(velocity, target, partner)
    if settings["dont_contrast_on_unconditional"]:  # not offered: published runs contrast all samples
        contrast = contrast * ~drop * len(drop) / (~drop).sum()
    losses = flow - config["contrastive_weight"] * contrast
    projection = alignment_loss(projected, [case[f"{prefix}features"]])
    return {
        "x_t": x_t,
        "velocity": velocity,
        "labels_after_drop": labels,
        "projected": projected[0],
        "partner_index": partner,
        "flow_loss": flow,
        "contrastive_loss": contrast,
        "loss": losses,
        "proj_loss": projection,
        "total": losses.mean() + config["proj_coeff"] * projection,
    }


def _samples(case: Case, model: SiT) -> Figures:
    settings, labels, draws = case.config["sampler"], case["sampler_labels"], case["sampler_noise"]
    low, high = settings["guidance_low"], settings["guidance_high"]
    null = case.config["model"]["num_classes"]

    def sample(network: Any) -> Tensor:
        velocity = guided(network, labels, null, settings["cfg_scale"], low, high)
        start, steps = case["sampler_start"], settings["num_steps"]
        return euler_maruyama(velocity, start, steps, lambda step, like: draws[step], Interpolant("linear"))

    def without_interference(x_t: Tensor, t: Tensor, labels: Tensor) -> tuple[Tensor]:
        velocity = model(x_t, t, labels, project=False)[0]
        if not low <= float(t[0]) <= high:
            return (velocity,)
        removed = settings["interference_weight"] * case["interference_vector"]
        return (settings["velocity_weight"] * velocity - removed,)

    return {
        "samples_plain": sample(partial(model, project=False)),
        "samples_with_interference_removed": sample(without_interference),
    }


def _training(case: Case, name: str) -> Figures:
    config, model = case.config, _model(case, case.config["training_fill_seed"])
    before, ema, rows = weights_of(model), Ema(model, config["ema_decay"]), []
    trained = trainable(model)
    optimizer = torch.optim.AdamW(trained, config["learning_rate"], weight_decay=0.0)
    for step in case.steps():
        found = _step(case, model, config["variants"][name], f"step{step}_")
        norm = optimize(found["total"], optimizer, config["max_grad_norm"])
        ema.update(model)
        terms = ("flow_loss", "contrastive_loss", "loss", "proj_loss", "total")
        rows.append([*(found[term].mean().item() for term in terms), norm.item()])
    figures: Figures = {f"train_{name}_flow_contrastive_loss_proj_total_gradnorm": torch.tensor(rows)}
    if name == config["training_variants"][0]:
        figures |= moves(case, before, weights_of(model), "model_move.")
        figures |= moves(case, before, ema.weights, "ema_move.")
    return figures
