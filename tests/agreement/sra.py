"""SRA: the student's head, the teacher at earlier times, all distances, three training steps with two of them."""

from __future__ import annotations

import torch
from case import Case, Ema, Figures, fill, moves, optimize, trainable, weights_of
from torch import Tensor

from repa_pipe.diffusion.interpolant import Interpolant
from repa_pipe.diffusion.loss import denoising_loss, self_alignment_loss
from repa_pipe.models.self_alignment import SELF_HEAD, SelfAlignmentHead
from repa_pipe.models.sit import SiT, SiTConfig
from repa_pipe.models.sit.model import block_tap

UNUSED = {"decoder_hidden_size", "use_cfg", "fused_attn", "use_alignment_head"}


def recognizes(case: Case) -> bool:
    return case.config.get("method") == "sra"


def is_input(case: Case, name: str) -> bool:
    return name in case.config["input_keys"]


def model_of(case: Case, seed: int) -> SiT:
    settings = {key: value for key, value in case.config["model"].items() if key not in UNUSED}
    model = SiT(SiTConfig.from_dict(settings | {"z_dims": (), "encoder_depth": 1}))
    model.add_module(SELF_HEAD, SelfAlignmentHead(settings["hidden_size"]))
    fill(model, seed, case.config["keep"])
    return model


def dropped_labels(case: Case, prefix: str = "") -> Tensor:
    """Return the labels after the student's dropout."""
    settings = case.config["model"]
    drop = case[f"{prefix}label_drop_uniform"] < settings["class_dropout_prob"]
    return torch.where(drop, settings["num_classes"], case[f"{prefix}labels"])


def compute(case: Case) -> Figures:
    student, teacher = (model_of(case, case.config[f"fill_seed_{name}"]) for name in ("student", "teacher"))
    with torch.no_grad():
        figures = _step(case, student, teacher, "")
        figures["eval_velocity"] = student(figures["x_t"], case["t"], case["labels"])[0]
    for kind in ("cos", "sml1"):
        figures |= _training(case, kind)
    return figures


def _step(case: Case, student: SiT, teacher: SiT, prefix: str) -> Figures:
    """Return everything that is recorded of one step, before its backward pass."""
    config, interpolant = case.config, Interpolant(case.config["path_type"])
    data, noise, t, labels = case[f"{prefix}latents"], case[f"{prefix}noise"], case[f"{prefix}t"], None
    labels = dropped_labels(case, prefix)
    x_t, target = interpolant.interpolate(data, noise, t)
    tap = block_tap(config["block_out_s"])
    velocity, _, tapped = student(x_t, t, labels, taps=(tap,))
    projected = student.get_submodule(SELF_HEAD)(tapped[tap])
    earlier = (t - config["t_max"] * case[f"{prefix}teacher_offset_uniform"]).clamp(0, 1)
    with torch.no_grad():
        teacher_x_t, _ = interpolant.interpolate(data, noise, earlier)
        hidden = teacher.hidden_states(teacher_x_t, earlier, labels, [config["block_out_t"]])[0]
    losses = denoising_loss(velocity, target)
    per_channel = self_alignment_loss(projected, hidden)
    figures: Figures = {
        "x_t": x_t,
        "velocity": velocity,
        "student_hidden": tapped[tap],
        "student_projected": projected,
        "labels_after_drop": labels,
        "teacher_t": earlier,
        "teacher_x_t": teacher_x_t,
        "teacher_labels": labels,
        "teacher_hidden": hidden,
        "denoising_loss": losses,
        "align_loss_cos_per_channel": per_channel,
        "align_loss_cos": per_channel.mean(),
    }
    for kind in ("sml1", "l1", "l2"):
        figures[f"align_loss_{kind}"] = self_alignment_loss(projected, hidden, kind).mean()
    for kind in ("cos", "sml1"):
        weight = config[f"align_weight_{kind}"]
        figures[f"total_loss_{kind}"] = losses.mean() + weight * figures[f"align_loss_{kind}"]
    return figures


def _training(case: Case, kind: str) -> Figures:
    config, model = case.config, model_of(case, case.config["training_fill_seed"])
    before, ema, rows = weights_of(model), Ema(model, config["ema_decay"]), []
    teacher = model_of(case, config["training_fill_seed"])
    trained = trainable(model)
    optimizer = torch.optim.AdamW(trained, config["learning_rate"], weight_decay=0.0)
    for step in case.steps():
        figures = _step(case, model, teacher, f"step{step}_")
        norm = optimize(figures[f"total_loss_{kind}"], optimizer, config["max_grad_norm"])
        ema.update(model)
        teacher.load_state_dict(teacher.state_dict() | ema.weights)
        names = ("denoising_loss", f"align_loss_{kind}", f"total_loss_{kind}")
        rows.append([*(figures[name].mean().item() for name in names), norm.item()])
    found: Figures = {f"train_{kind}_denoising_align_total_gradnorm": torch.tensor(rows)}
    if kind == "cos":
        found |= moves(case, before, weights_of(model), "model_move.")
        found |= moves(case, before, ema.weights, "ema_move.")
    return found
