"""LightningDiT: the model, its loss, three training steps, its time draws and its sampler."""

from __future__ import annotations

import re
from itertools import pairwise

import torch
from case import Case, Ema, Figures, fill, moves, weights_of
from torch import Tensor
from torch.nn.functional import cosine_similarity

from repa_pipe.converter import structure
from repa_pipe.diffusion.times import logit_normal, shifted
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
        "eval_v": model(x_t, t, labels),
        "eval_v_null": model(x_t, t, null),
    }


def _variants(case: Case) -> Figures:
    figures = {}
    for name, settings in case.config["variants"].items():
        x, t, y = (case[f"variant_{name}_{each}"] for each in "xty")
        figures[f"variant_{name}_v"] = _model(case, settings)(x, t, y)
    return figures


def _times(case: Case) -> Figures:
    normal, mean = case["drawn_normal"], case.config["shifted_mu"]
    return {
        "drawn_t_lognormal": logit_normal(normal, 0, 1),
        "drawn_t_lognormal_shifted": logit_normal(normal, mean, 1),
    }


def _guided(case: Case, model: LightningDiT, x: Tensor, t: Tensor, *, labels: Tensor, sampler: dict) -> Tensor:
    """Return the velocities of the labels, then of the null label, as the published guided call does."""
    both = torch.cat([x, x])
    null = torch.full_like(labels, case.config["null_label"])
    velocity = model(both, t.expand(len(both)), torch.cat([labels, null]))
    conditional, unconditional = velocity.chunk(2)
    outside = sampler["interval"] is True and float(t) < sampler["start"]
    steered = conditional if outside else unconditional + sampler["cfg"] * (conditional - unconditional)
    channels = case.config["cfg_channels"]
    velocity[:, :channels] = torch.cat([steered, steered])[:, :channels]
    return velocity


def _samples(case: Case, model: LightningDiT) -> Figures:
    config, noise, labels = case.config, case["sample_noise"], case["sample_labels"]
    figures: Figures = {}
    for sampler in config["samplers"]:
        count, shift = sampler["num_steps"], sampler["shift"]
        times = shifted(torch.linspace(0, 1, count), shift or 1)
        figures[f"grid_n{count}_shift{shift}"] = times
        x = noise
        for start, end in pairwise(times):
            x = x + (end - start) * _guided(case, model, x, start, labels=labels, sampler=sampler)[: len(x)]
        name = (
            f"ode_n{count}_shift{shift}_cfg{sampler['cfg']}_start{sampler['start']}_interval{int(sampler['interval'])}"
        )
        figures[name] = x
        figures[f"{name}_denormalised"] = x * case["latents_std"] / config["latent_multiplier"] + case["latents_mean"]
    for key in case.matching(r"forward_with_cfg_t.*"):
        t = torch.tensor(float(key.removeprefix("forward_with_cfg_t")))
        figures[key] = _guided(case, model, noise, t, labels=labels, sampler=config["samplers"][1])
    return figures


def _training(case: Case, model: LightningDiT) -> Figures:
    config, before = case.config, weights_of(model)
    trained = [value for value in model.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(trained, config["lr"], config["betas"], config["adam_eps"], config["weight_decay"])
    ema, rows, figures = Ema(model, config["ema_decay"]), [], {}
    for step in case.steps():
        x_t, target = _path(case, step)
        labels = torch.where(case[f"step{step}_label_dropped"].bool(), config["null_label"], case[f"step{step}_labels"])
        velocity = model(x_t, case[f"step{step}_t"], labels)
        losses = (velocity - target).square().flatten(1).mean(dim=1)
        cosines = (1 - cosine_similarity(velocity, target, dim=1)).flatten(1).mean(dim=1)
        total = losses.mean() + cosines.mean()
        optimizer.zero_grad()
        total.backward()
        limit = config["max_grad_norm"]
        norm = torch.nn.utils.clip_grad_norm_(trained, limit if limit is not None else torch.inf)
        optimizer.step()
        ema.update(model)
        rows.append([each.item() for each in (losses.mean(), cosines.mean(), total, norm)])
        figures |= {f"step{step}_loss_per_sample": losses, f"step{step}_cosine_loss_per_sample": cosines}
    figures["mse_cosine_total_gradnorm"] = torch.tensor(rows)
    figures |= moves(case, before, weights_of(model)) | moves(case, before, ema.weights, "ema_move.")
    return figures
