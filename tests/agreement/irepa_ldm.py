"""iREPA on latents: SiT with convolutional projectors, spatial normalization, its losses and three training steps."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from case import Case, Figures, filled, moves, optimize, trainable, weights_of
from rae_ditdh import is_input
from torch import Tensor, nn

from repa_pipe.diffusion.interpolant import Interpolant
from repa_pipe.diffusion.loss import alignment_loss, denoising_loss, spatial_zscore
from repa_pipe.diffusion.posterior import sample_posterior
from repa_pipe.models.sit import SiT, SiTConfig, drop_labels

__all__ = ["compute", "is_input", "recognizes"]
UNUSED = {"decoder_hidden_size", "fused_attn", "use_cfg"}  # the latter leaves the label embedder as it is
NAMES = {"projection_layer_type": "projector", "proj_kwargs_kernel_size": "projector_kernel_size"}


def recognizes(case: Case) -> bool:
    return "projector_variants" in case.config


def compute(case: Case) -> Figures:
    with torch.no_grad():
        figures = _evaluation(case)
    return figures | _training(case)


def projector_settings(settings: Mapping[str, object], names: Mapping[str, str]) -> dict[str, object]:
    """Return settings under the names that they have here. A linear projector is a convolution with kernel 1."""
    found = {names.get(name, name): value for name, value in settings.items()}
    if found.get("projector") == "linear":
        found |= {"projector": "conv", "projector_kernel_size": 1}
    return found


def published(tensors: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """Return tensors under the names of iREPA, whose MLPs are one level deeper than those of REPA."""
    return {
        prefix + re.sub(r"^(projectors\.\d+)\.(\d+\.)", r"\1.projection_layer.\2", name): value
        for name, value in tensors.items()
    }


def fill(model: nn.Module, case: Case, prefix: str = "") -> None:
    """Fill the weights of a model by the names of iREPA."""
    ours = list(model.state_dict())
    weights = filled(published(model.state_dict(), prefix), case.config["fill_seed"], case.config["fill_keep"])
    model.load_state_dict(dict(zip(ours, weights.values(), strict=True)))


def target(case: Case, features: Tensor) -> Tensor:
    """Return the features as they are aligned with."""
    assert (case.config["spnorm_method"], case.config["spnorm_eps"]) == ("zscore", 1e-6)
    return spatial_zscore(features, case.config["zscore_alpha"])


def _model(case: Case, variant: str) -> SiT:
    settings = {key: value for key, value in case.config["model"].items() if key not in UNUSED}
    settings |= projector_settings(case.config["projector_variants"][variant], NAMES)
    model = SiT(SiTConfig.from_dict(settings))
    fill(model, case)
    return model


def _features(case: Case, prefix: str = "") -> list[Tensor]:
    return [case[f"{prefix}features_{number}"] for number in range(len(case.config["model"]["z_dims"]))]


def _path(case: Case, data: Tensor, prefix: str = "") -> tuple[Tensor, Tensor]:
    """Return x_t and the velocity."""
    assert case.config["prediction"] == "v"
    return Interpolant(case.config["path"]).interpolate(data, case[f"{prefix}noise"], case[f"{prefix}t"])


def _latents(case: Case, step: int) -> Tensor:
    scale, bias = (case[f"latents_{each}"].reshape(1, -1, 1, 1) for each in ("scale", "bias"))
    moments, noise = case[f"step{step}_moments"], case[f"step{step}_posterior_noise"]
    return sample_posterior(moments, noise, scale, -bias * scale)


def _evaluation(case: Case) -> Figures:
    t, labels, raw = case["t"], case["labels"], _features(case)
    targets = [target(case, features) for features in raw]
    x_t, velocity = _path(case, case["x0"])
    figures: Figures = {f"target_{number}": features for number, features in enumerate(targets)}
    for variant in case.config["projector_variants"]:
        model = _model(case, variant)
        predicted, projected = model(x_t, t, labels)
        alignment = alignment_loss(projected, targets)
        figures |= {f"{variant}_projected_{number}": tokens for number, tokens in enumerate(projected)}
        figures |= {
            f"{variant}_alignment_loss": alignment,
            f"{variant}_alignment_loss_times_coeff": case.config["proj_coeff"] * alignment,
            f"{variant}_alignment_loss_with_raw_features": alignment_loss(projected, raw),
            "xt": x_t,
            "velocity": predicted,
            "hidden_at_encoder_depth": model.hidden_states(x_t, t, labels, [model.config.encoder_depth])[0],
            "denoising_loss": denoising_loss(predicted, velocity),
        }
    figures |= {f"step{step}_latents_from_moments": _latents(case, step) for step in case.steps()}
    return figures


def _training(case: Case) -> Figures:
    config, model = case.config, _model(case, case.config["trained_variant"])
    trained = trainable(model)
    adamw = torch.optim.AdamW(trained, **config["optimizer"])
    before, rows, figures = published(weights_of(model)), [], {}
    for step in case.steps():
        prefix = f"step{step}_"
        x_t, velocity = _path(case, _latents(case, step), prefix)
        dropped = case[f"{prefix}dropout_uniform"] < model.config.class_dropout_prob
        labels = drop_labels(case[f"{prefix}labels"], dropped, model.config.num_classes)
        predicted, projected = model(x_t, case[f"{prefix}t"], labels)
        denoising = denoising_loss(predicted, velocity).mean()
        alignment = alignment_loss(projected, [target(case, each) for each in _features(case, prefix)])
        total = denoising + config["proj_coeff"] * alignment
        norm = optimize(total, adamw, config["max_grad_norm"])
        rows.append([each.item() for each in (denoising, alignment, total, norm)])
        figures |= moves(case, before, published(weights_of(model)), f"move{step + 1}.")
    return figures | {"train_denoising_alignment_total_gradnorm": torch.tensor(rows)}
