"""REG: SiT with a class token that is generated with the image, its losses, three training steps, its SDE sampler."""

from __future__ import annotations

import torch
from case import Case, Figures, drawn_latents, fill, moves, optimize, trainable, weights_of
from irepa_ldm import UNUSED
from rae_ditdh import is_input
from torch import Tensor

from repa_pipe.diffusion.guidance import guided
from repa_pipe.diffusion.interpolant import Interpolant
from repa_pipe.diffusion.loss import alignment_loss, denoising_loss
from repa_pipe.diffusion.samplers import euler_maruyama
from repa_pipe.models.sit import EntangledSiT, SiTConfig, drop_labels

__all__ = ["compute", "is_input", "recognizes"]


def recognizes(case: Case) -> bool:
    return "cls_coeff" in case.config and "fill_keep" in case.config


def compute(case: Case) -> Figures:
    with torch.no_grad():
        figures = _evaluation(case) | _samples(case)
    return figures | _training(case)


def _model(case: Case) -> EntangledSiT:
    settings = {key: value for key, value in case.config["model"].items() if key not in UNUSED}
    model = EntangledSiT(SiTConfig.from_dict(settings | {"cls_dim": settings["z_dims"][0]}))
    fill(model, case.config["fill_seed"], case.config["fill_keep"])
    return model


def _path(case: Case, model: EntangledSiT, data: Tensor, prefix: str = "") -> tuple[Tensor, Tensor]:
    """Return x_t and the velocity of image and class token, as states."""
    assert case.config["prediction"] == "v"
    state = model.pack(data, case[f"{prefix}class_token"])
    noise = model.pack(case[f"{prefix}noise"], case[f"{prefix}class_noise"])
    return Interpolant(case.config["path"]).interpolate(state, noise, case[f"{prefix}t"])


def _labels(case: Case, model: EntangledSiT, prefix: str = "") -> Tensor:
    dropped = case[f"{prefix}dropout_uniform"] < model.config.class_dropout_prob
    return drop_labels(case[f"{prefix}labels"], dropped, model.config.num_classes)


def _losses(
    case: Case, model: EntangledSiT, output: tuple[Tensor, list[Tensor]], target: Tensor, prefix: str = ""
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the denoising losses of image and class token per sample, and the alignment loss."""
    pairs = zip(model.unpack(output[0]), model.unpack(target), strict=True)
    of_image, of_class = (denoising_loss(ours, theirs) for ours, theirs in pairs)
    tokens = torch.cat([case[f"{prefix}class_token"].unsqueeze(1), case[f"{prefix}features"]], dim=1)
    return of_image, of_class, alignment_loss(output[1], [tokens])


def _evaluation(case: Case) -> Figures:
    model = _model(case)
    x_t, target = _path(case, model, case["x0"])
    figures: Figures = dict(zip(("xt", "class_xt"), model.unpack(x_t), strict=True))
    for mode, labels in (("eval", case["labels"]), ("train", _labels(case, model))):
        output = model(x_t, case["t"], labels)
        velocity, class_velocity = model.unpack(output[0])
        of_image, of_class, alignment = _losses(case, model, output, target)
        figures |= {
            f"{mode}_velocity": velocity,
            f"{mode}_class_velocity": class_velocity,
            f"{mode}_denoising_loss": of_image,
            f"{mode}_class_denoising_loss": of_class,
            f"{mode}_alignment_loss": alignment,
        }
        if mode == "eval":
            figures["projected"] = output[1][0]
    return figures


def _samples(case: Case) -> Figures:
    model, labels = _model(case), case["sampler_labels"]
    start = model.pack(case["sampler_latents"], case["sampler_class_latents"])
    noise = [model.pack(*both) for both in zip(case["sampler_noise"], case["sampler_class_noise"], strict=True)]
    figures: Figures = {}
    for name, run in case.config["sampler_runs"].items():
        seen: list[Tensor] = []

        def recorded(x_t: Tensor, t: Tensor, labels: Tensor, seen: list[Tensor] = seen) -> tuple[Tensor]:
            seen.append(model.unpack(x_t)[1])
            return (model(x_t, t, labels, project=False)[0],)

        scale = max(1.0, run["cfg_scale"])
        velocity = guided(
            recorded,
            labels,
            model.config.num_classes,
            scale,
            run["guidance_low"],
            run["guidance_high"],
            model.guidance_scales(scale, run["cls_cfg_scale"]),
        )
        path = Interpolant(case.config["path"])
        state = euler_maruyama(
            velocity, start, case.config["sampler_steps"], lambda step, _: noise[step].double(), path
        )
        image, class_token = model.unpack(state)
        figures |= {
            f"sde_{name}": image,
            f"sde_{name}_class_token": class_token,
            f"sde_{name}_class_token_at_each_evaluation": torch.stack([each[: len(labels)] for each in seen]),
            f"sde_{name}_batch_of_each_evaluation": torch.tensor([len(each) for each in seen]),
        }
    return figures


def _training(case: Case) -> Figures:
    config, model = case.config, _model(case)
    trained = trainable(model)
    adamw = torch.optim.AdamW(trained, **config["optimizer"])
    before, rows, figures = weights_of(model), [], {}
    for step in case.steps():
        prefix = f"step{step}_"
        data = drawn_latents(case, step)
        x_t, target = _path(case, model, data, prefix)
        output = model(x_t, case[f"{prefix}t"], _labels(case, model, prefix))
        of_image, of_class, alignment = _losses(case, model, output, target, prefix)
        denoising, class_denoising = of_image.mean(), of_class.mean()
        total = denoising + config["proj_coeff"] * alignment + config["cls_coeff"] * class_denoising
        norm = optimize(total, adamw, config["max_grad_norm"])
        rows.append([each.item() for each in (denoising, class_denoising, alignment, total, norm)])
        figures |= moves(case, before, weights_of(model), f"move{step + 1}.")
    return figures | {"train_denoising_class_alignment_total_gradnorm": torch.tensor(rows)}
