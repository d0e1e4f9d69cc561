"""iREPA on pixels: JiT, its losses with three projectors, three training steps, learning rates and samplers."""

from __future__ import annotations

import torch
from case import Case, Ema, Figures, moves, optimize, trainable, weights_of
from irepa_ldm import fill, projector_settings, published, target
from rae_ditdh import is_input
from torch import Tensor

from repa_pipe.converter import structure
from repa_pipe.diffusion.guidance import guided
from repa_pipe.diffusion.interpolant import Interpolant
from repa_pipe.diffusion.loss import alignment_loss, denoising_loss
from repa_pipe.diffusion.samplers import euler
from repa_pipe.diffusion.times import falling_grid, logit_normal
from repa_pipe.models.jit.config import JiTConfig
from repa_pipe.models.jit.model import JiT
from repa_pipe.models.sit import drop_labels
from repa_pipe.pipeline.training.schedule import decayed

__all__ = ["compute", "is_input", "recognizes"]
PREFIX = "net."  # of the published names, by which weights were filled
NAMES = {  # published names of settings that have another here
    "img_size": "input_size",
    "class_num": "num_classes",
    "projection_layer_type": "projector",
    "kernel_size": "projector_kernel_size",
}


def recognizes(case: Case) -> bool:
    return "in_context_len" in case.config.get("net", {})


def compute(case: Case) -> Figures:
    with torch.no_grad():
        figures = _evaluation(case) | _samples(case)
    return figures | _schedules(case) | _training(case)


def _model(case: Case, variant: str) -> JiT:
    config = case.config
    settings = projector_settings(config["net"] | config["variants"][variant], NAMES)
    others = {
        "t_eps": config["t_eps"],
        "noise_scale": config["noise_scale"],
        "class_dropout_prob": config["label_drop_prob"],
    }
    model = JiT(structure(settings | others, JiTConfig, "config"))
    fill(model, case, PREFIX)
    return model


def _inputs(case: Case, model: JiT, prefix: str = "") -> tuple[Tensor, Tensor, Tensor]:
    """Return x_t, times (0 at the image) and the target of the velocity, of a step or of the evaluation."""
    images = case[f"{prefix}images_uint8"] / 255 * 2 - 1
    t = logit_normal(-case[f"{prefix}t_normal"], -case.config["P_mean"], case.config["P_std"])
    x_t, velocity = Interpolant("linear").interpolate(images, model.noise_scale * case[f"{prefix}noise"], t)
    return x_t, t, model.target(x_t, velocity, images, t)


def _labels(case: Case, model: JiT, prefix: str = "") -> Tensor:
    dropped = case[f"{prefix}dropout_uniform"] < case.config["label_drop_prob"]
    return drop_labels(case[f"{prefix}labels"], dropped, model.config.num_classes)


def _evaluation(case: Case) -> Figures:
    figures: Figures = {"target": target(case, case["features"])}
    for variant in case.config["variants"]:
        model = _model(case, variant)
        x_t, t, velocity = _inputs(case, model)
        figures |= {"z": x_t, "t": 1 - t}
        for mode, labels in (("eval", case["labels"]), ("train", _labels(case, model))):
            predicted, projected = model(x_t, t, labels)
            denoising = denoising_loss(predicted, velocity).mean()
            alignment = alignment_loss(projected, [figures["target"]])
            figures |= {
                f"{mode}_labels_seen": labels,
                f"{mode}_x_prediction": model.predict(x_t, t, labels)[0],
                f"{mode}_denoising_loss": denoising,
                f"{variant}_{mode}_alignment_loss": alignment,
                f"{variant}_{mode}_total_loss": denoising + case.config["proj_coeff"] * alignment,
            }
            if mode == "eval":
                figures[f"{variant}_projected"] = projected[0]
    return figures


def _schedules(case: Case) -> Figures:
    settings = case.config["schedule"]
    return {
        f"learning_rate_{kind}": torch.tensor(
            [
                decayed(
                    epoch,
                    settings["lr"],
                    settings["min_lr"],
                    kind,
                    start=settings["warmup_epochs"],
                    end=settings["epochs"],
                    warm_up=0,
                )
                for epoch in settings["at_epochs"]
            ]
        )
        for kind in ("constant", "cosine")
    }


def _samples(case: Case) -> Figures:
    model = _model(case, case.config["trained_variant"])
    figures: Figures = {}
    for name, run in case.config["sampler_runs"].items():
        batches: list[int] = []

        def velocity(x_t: Tensor, t: Tensor, labels: Tensor, batches: list[int] = batches) -> tuple[Tensor]:
            batches.append(len(x_t))
            return (model(x_t, t, labels, project=False)[0],)

        # Published times rise to the image, in float32
        low, high = (float(1 - torch.tensor(end)) for end in reversed(run["interval"]))
        figures[f"sample_{name}"] = euler(
            guided(
                velocity,
                case["sampler_labels"],
                model.config.num_classes,
                run["cfg_scale"],
                low,
                high,
                each_evaluation=True,
            ),
            model.noise_scale * case["sampler_noise"],
            run["steps"],
            heun=run["method"] == "heun",
            times=falling_grid(run["steps"] + 1, 0.0),
        )
        figures[f"sample_{name}_batch_of_each_evaluation"] = torch.tensor(batches)
    return figures


def _training(case: Case) -> Figures:
    config, model = case.config, _model(case, case.config["trained_variant"])
    options = config["optimizer"]
    trained = trainable(model)
    adamw = torch.optim.AdamW(trained, options["lr"], options["betas"], weight_decay=options["weight_decay"])
    averages = {number: Ema(model, config[f"ema_decay{number}"]) for number in (1, 2)}
    before, rows, figures = published(weights_of(model), PREFIX), [], {}
    for step in case.steps():
        prefix = f"step{step}_"
        x_t, t, velocity = _inputs(case, model, prefix)
        predicted, projected = model(x_t, t, _labels(case, model, prefix))
        denoising = denoising_loss(predicted, velocity).mean()
        alignment = alignment_loss(projected, [target(case, case[f"{prefix}features"])])
        total = denoising + config["proj_coeff"] * alignment
        norm = optimize(total, adamw)
        for average in averages.values():
            average.update(model)
        rows.append([each.item() for each in (denoising, alignment, total, norm)])
        figures |= moves(case, before, published(weights_of(model), PREFIX), f"move{step + 1}.")
        for number, average in averages.items():
            figures |= moves(case, before, published(average.weights, PREFIX), f"move{step + 1}_of_ema{number}.")
    return figures | {"train_denoising_alignment_total_gradnorm": torch.tensor(rows)}
