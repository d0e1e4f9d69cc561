"""RAE's DiT-DH: the model, three training steps, learning rates, time draws and its samplers."""

from __future__ import annotations

import torch
from case import Case, Ema, Figures, fill, moves, rows_of, weights_of
from torch import Tensor

from repa_pipe.converter import structure
from repa_pipe.diffusion.guidance import guided, with_weak_model
from repa_pipe.diffusion.interpolant import Interpolant
from repa_pipe.diffusion.samplers import euler
from repa_pipe.diffusion.times import falling_grid, shifted, truncated_logit_normal
from repa_pipe.models.dit_dh.config import DiTDHConfig
from repa_pipe.models.dit_dh.model import DiTDH
from repa_pipe.pipeline.training.schedule import decayed

LAST = 0.999  # time of the published grids and draws


def recognizes(case: Case) -> bool:
    return "guidance_model" in case.config and "time_dist_shift" in case.config


def is_input(case: Case, name: str) -> bool:
    return name in case.config["input_keys"]


def compute(case: Case) -> Figures:
    config = case.config
    model = _model(case, config["model"], config["fill_seed"])
    weak = _model(case, config["guidance_model"], config["guidance_fill_seed"])
    with torch.no_grad():
        figures = _evaluation(case, model) | _times(case) | _samples(case, model, weak)
    return figures | _schedules(case) | _training(case, model)


def _model(case: Case, settings: dict, seed: int) -> DiTDH:
    config = case.config
    scales = {
        r".*embedding_table\.weight": config["label_table_scale"],
        r".*\.W": config["W_scale"],
        "": config["matrix_scale"],
    }
    model = DiTDH(structure(settings, DiTDHConfig, "config"))
    fill(model, seed, config["fill_keep"], scales)
    return model


def _draw(case: Case, uniform: Tensor, kind: str | None = None) -> Tensor:
    kind = kind or case.config["time_dist_type"]
    if kind == "uniform":
        return shifted(LAST * uniform, case.config["time_dist_shift"])
    name, mean, std = kind.split("_")
    assert name == "logit-normal"
    return shifted(truncated_logit_normal(uniform, float(mean), float(std), LAST), case.config["time_dist_shift"])


def _evaluation(case: Case, model: DiTDH) -> Figures:
    t, labels = case["eval_t"], case["step0_labels"]
    x_t, target = Interpolant("linear").interpolate(case["step0_latents"], case["step0_noise"], t)
    time = model.t_embedder(t, torch.float32)
    return {
        "eval_xt": x_t,
        "eval_target": target,
        "eval_v": model(x_t, t, labels)[0],
        "eval_v_null": model(x_t, t, torch.full_like(labels, model.config.num_classes))[0],
        "eval_encoder_tokens": model.encode(x_t, time, labels),
        "eval_time_embedding": time,
        "enc_rope_cos": model.enc_feat_rope.freqs_cos,
        "enc_rope_sin": model.enc_feat_rope.freqs_sin,
        "pos_embed": model.pos_embed,
    }


def _times(case: Case) -> Figures:
    figures = {
        "drawn_t_logit_normal": _draw(case, case["drawn_uniform"], "logit-normal_0_1"),
        "drawn_t_uniform": _draw(case, case["drawn_uniform"], "uniform"),
    }
    steps = {f"step{step}_t": _draw(case, case[f"step{step}_time_uniform"]) for step in case.steps()}
    return figures | steps


def _schedules(case: Case) -> Figures:
    figures, per_epoch = {}, case.config["schedules_steps_per_epoch"]
    for number, schedule in enumerate(case.config["schedules"]):
        rates = [
            decayed(
                step,
                schedule["base_lr"],
                schedule["final_lr"],
                schedule["type"],
                start=schedule["warmup_epochs"] * per_epoch,
                end=schedule["decay_end_epoch"] * per_epoch,
                warm_up=1 if schedule["warmup_from_zero"] else None,
            )
            for step in case.config["schedules_at"]
        ]
        figures[f"schedule_{number}_lr"] = torch.tensor(rates)
    return figures


def _samples(case: Case, model: DiTDH, weak: DiTDH) -> Figures:
    config, noise, labels = case.config, case["sample_noise"], case["sample_labels"]
    count, shift = config["sampler"]["num_steps"], config["time_dist_shift"]
    half = torch.full((len(noise),), 0.5)
    times = falling_grid(count, 1 - LAST, shift)
    published = falling_grid(config["published_num_steps"], 1 - LAST, config["published_shift"])
    figures: Figures = {
        f"grid_n{count}": times,
        f"grid_published_n{config['published_num_steps']}": published,
        "guidance_model_v": weak(noise, half, labels)[0],
    }
    for mode, scale, low, high in config["samplers"]:
        key = f"ode_n{count}_{mode}{scale}_lo{low}_hi{high}"
        both = with_weak_model(model, weak) if mode == "autoguidance" else None
        used = scale if mode in {"cfg", "autoguidance"} else 1.0
        velocity = guided(model, labels, model.config.num_classes, used, low, high, both=both)
        figures[key] = euler(velocity, noise, count, times=times)
    return figures


def _training(case: Case, model: DiTDH) -> Figures:
    settings, before, figures = case.config["training"], weights_of(model), {}
    optimizer, schedule = settings["optimizer"], settings["scheduler"]
    parameters = list(model.parameters())
    adamw = torch.optim.AdamW(
        parameters, optimizer["lr"], optimizer["betas"], optimizer["eps"], optimizer["weight_decay"]
    )
    ema, rows, rates = Ema(model, settings["ema_decay"]), [], []
    for step in case.steps():
        t = _draw(case, case[f"step{step}_time_uniform"])
        x_t, target = Interpolant("linear").interpolate(case[f"step{step}_latents"], case[f"step{step}_noise"], t)
        dropped = case[f"step{step}_label_dropped"].bool()
        labels = torch.where(dropped, model.config.num_classes, case[f"step{step}_labels"])
        losses = (model(x_t, t, labels)[0] - target).square().flatten(1).mean(dim=1)
        adamw.zero_grad()
        losses.mean().backward()
        if step == 0:
            figures |= gradients(case, model)
        norm = torch.nn.utils.clip_grad_norm_(parameters, settings["clip_grad"] or torch.inf)
        rates.append(rate(schedule, step))
        for group in adamw.param_groups:
            group["lr"] = rates[-1]
        adamw.step()
        ema.update(model)
        rows.append([losses.mean().item(), norm.item()])
        figures[f"step{step}_loss_per_sample"] = losses
    figures |= {"loss_gradnorm": torch.tensor(rows), "lr": torch.tensor(rates)}
    figures |= {key: ema.weights[key.removeprefix("ema_after.")].flatten() for key in case.matching(r"ema_after\..*")}
    return figures | moves(case, before, weights_of(model)) | moves(case, before, ema.weights, "ema_move.")


def rate(schedule: dict, step: int) -> float:
    """Return the learning rate of a step."""
    return decayed(
        step,
        schedule["base_lr"],
        schedule["final_lr"],
        schedule["type"],
        start=schedule["warmup_steps"],
        end=schedule["decay_end_steps"],
        warm_up=1 if schedule["warmup_from_zero"] else None,
    )


def gradients(case: Case, model: torch.nn.Module) -> Figures:
    """Return the recorded gradients of the first step, before clipping."""
    parameters, figures = dict(model.named_parameters()), {}
    for key in case.matching(r"step0_gradient\..*"):
        name, _, part = key.removeprefix("step0_gradient.").partition("|")
        figures[key] = rows_of(parameters[name].grad, part).flatten()[:2000].clone()
    return figures
