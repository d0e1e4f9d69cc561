"""SRA with two times per sample and separated attention: partitions, times, losses, three training steps."""

from __future__ import annotations

from typing import Any

import torch
from case import Case, Ema, Figures, moves, optimize, trainable, weights_of
from sra import dropped_labels, is_input, model_of
from torch import Tensor

from repa_pipe.diffusion.interpolant import Interpolant
from repa_pipe.diffusion.loss import self_alignment_loss
from repa_pipe.diffusion.token_times import over_pixels, times_of, token_groups
from repa_pipe.models.self_alignment import SELF_HEAD
from repa_pipe.models.sit import SiT
from repa_pipe.models.sit.model import block_tap

__all__ = ["compute", "is_input", "recognizes"]


def recognizes(case: Case) -> bool:
    return case.config.get("method") == "sra_dts_as"


def compute(case: Case) -> Figures:
    student, teacher = (model_of(case, case.config[f"fill_seed_{name}"]) for name in ("student", "teacher"))
    figures: Figures = {}
    with torch.no_grad():
        for name, settings in case.config["variants"].items():
            found = _step(case, student, teacher, settings, prefix="", own=f"{name}_")
            figures |= {f"{name}_{key}": value for key, value in found.items()}
        t = case[f"{case.config['training_variant']}_group_t"][1]
        figures["eval_full_attention_velocity"] = student(case["latents"], t, case["labels"])[0]
    return figures | _training(case)


def _shares(settings: dict[str, Any]) -> list[float] | None:
    """Return the shares of the groups; None without groups."""
    shares = settings["mask_ratio"]
    if len(shares) == 1:
        shares = [shares[0], 1 - shares[0]]
    return list(shares) if all(0 < share < 1 for share in shares) else None


def _patches(case: Case, images: Tensor) -> Tensor:
    """Return latents [B, C, h, w] as tokens [B, N, p * p * C]: row, column, channel inside a patch."""
    side = case.config["model"]["patch_size"]
    parts = images.unflatten(3, (-1, side)).unflatten(2, (-1, side))
    return parts.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def _step(case: Case, student: SiT, teacher: SiT, settings: dict[str, Any], *, prefix: str, own: str) -> Figures:
    """Return what is recorded of a variant; inputs of its own begin with `own`, the others with `prefix`."""
    config, interpolant = case.config, Interpolant(case.config["path_type"])
    data, noise = case[f"{prefix}latents"], case[f"{prefix}noise"]
    labels, size = dropped_labels(case, prefix), data.shape[-1]
    group_t, shares = case[f"{own}group_t"], _shares(settings)
    groups = None
    if shares is not None:
        full = None
        if settings["full_sample_prob"]:
            full = case[f"{own}full_sample_uniform"] < settings["full_sample_prob"]
        groups = token_groups(case[f"{own}mask_uniform"], shares, full)
    count = (size // config["model"]["patch_size"]) ** 2
    has_times = groups is not None and settings["dual_time_scheduling"]
    ids = torch.zeros(len(data), count, dtype=torch.int64) if groups is None or not has_times else groups
    token_t = times_of(ids, group_t)
    separated = groups if settings["attention_separation"] else None
    tap = block_tap(config["block_out_s"])
    x_t, target = interpolant.interpolate(data, noise, over_pixels(token_t, size))
    velocity, _, tapped = student(x_t, token_t, labels, taps=(tap,), groups=separated)
    projected = student.get_submodule(SELF_HEAD)(tapped[tap])
    teacher_groups = separated if settings["teacher_mask"] else None
    earlier = token_t
    if settings["teacher_t"] == "sra":
        offsets = case[f"{own}teacher_offset_uniform"]
        earlier = (token_t - config["teacher_time_drop_at_most"] * times_of(ids, offsets)).clamp(0, 1)
    elif settings["teacher_t"] == "self_flow":
        earlier = group_t.min(dim=0).values.unsqueeze(1).expand_as(token_t)
    teacher_x_t, _ = interpolant.interpolate(data, noise, over_pixels(earlier, size))
    with torch.no_grad():
        hidden = teacher.hidden_states(
            teacher_x_t, earlier, case[f"{prefix}labels"], [config["block_out_t"]], teacher_groups
        )[0]
    prediction, wanted = _patches(case, velocity), _patches(case, target)
    losses = (prediction - wanted).square().mean(dim=(1, 2))
    per_channel = self_alignment_loss(projected, hidden, config["loss_type"])
    figures: Figures = {
        "token_t": group_t[0] if groups is None else token_t,
        "teacher_token_t": earlier,
        "prediction_tokens": prediction,
        "target_tokens": wanted,
        "denoising_loss": losses,
        "align_loss_per_channel": per_channel,
        "align_loss": per_channel.mean(),
        "total_loss": losses.mean() + config["align_weight"] * per_channel.mean(),
        "teacher_labels": case[f"{prefix}labels"],
        "student_hidden": tapped[tap],
        "student_projected": projected,
        "teacher_hidden": hidden,
    }
    if groups is not None:
        figures["group_ids"] = groups
    if has_times:
        figures["student_input_groups"] = torch.cat([interpolant.interpolate(data, noise, t)[0] for t in group_t])
        if settings["teacher_t"] == "sra":
            limit = config["teacher_time_drop_at_most"]
            times = (group_t - limit * case[f"{own}teacher_offset_uniform"]).clamp(0, 1)
            figures["teacher_input_groups"] = torch.cat([interpolant.interpolate(data, noise, t)[0] for t in times])
    return figures


def _training(case: Case) -> Figures:
    config, model = case.config, model_of(case, case.config["training_fill_seed"])
    before, ema, rows = weights_of(model), Ema(model, config["ema_decay"]), []
    teacher = model_of(case, config["training_fill_seed"])
    trained = trainable(model)
    optimizer = torch.optim.AdamW(trained, config["learning_rate"], weight_decay=0.0)
    settings = config["variants"][config["training_variant"]]
    for step in case.steps():
        prefix = f"step{step}_"
        figures = _step(case, model, teacher, settings, prefix=prefix, own=prefix)
        norm = optimize(figures["total_loss"], optimizer, config["max_grad_norm"])
        ema.update(model)
        teacher.load_state_dict(teacher.state_dict() | ema.weights)
        names = ("denoising_loss", "align_loss", "total_loss")
        rows.append([*(figures[name].mean().item() for name in names), norm.item()])
    found: Figures = {"train_denoising_align_total_gradnorm": torch.tensor(rows)}
    found |= moves(case, before, weights_of(model), "model_move.")
    return found | moves(case, before, ema.weights, "ema_move.")
