"""SR-DiT: inside the model, its losses, three training steps with routed tokens and dropped paths, and its samplers."""

from __future__ import annotations

import math
from functools import partial

import torch
from case import Case, Ema, Figures, fill, moves, optimize, trainable, weights_of
from torch import Tensor

from repa_pipe.diffusion.guidance import BothVelocities, guided, with_unconditional
from repa_pipe.diffusion.interpolant import Interpolant
from repa_pipe.diffusion.loss import alignment_loss, contrastive_loss, denoising_loss, previous_samples
from repa_pipe.diffusion.samplers import Noise, euler_maruyama, sde_times
from repa_pipe.diffusion.times import shifted
from repa_pipe.models.srdit.config import SRDiTConfig
from repa_pipe.models.srdit.model import SRDiT, grid_positions, kept_tokens

SIZES = (
    *("input_size", "patch_size", "in_channels", "hidden_size", "depth", "num_heads", "mlp_ratio", "num_classes"),
    *("class_dropout_prob", "projector_dim", "qk_norm"),
)


def recognizes(case: Case) -> bool:
    return "blocks_before_routing" in case.config and "path_drop_prob" in case.config


def is_input(case: Case, name: str) -> bool:
    return name in case.config["input_keys"]


def compute(case: Case) -> Figures:
    model = _model(case, case.config["fill_seed"])
    figures: Figures = {"rope_cos": model.feat_rope.freqs_cos, "rope_sin": model.feat_rope.freqs_sin}
    with torch.no_grad():
        figures |= _inside(case, model) | _path_dropped(case, model) | _evaluation(case, model) | _samples(case, model)
    return figures | _training(case)


def _model(case: Case, seed: int) -> SRDiT:
    config, sizes = case.config, case.config["model"]
    model = SRDiT(
        SRDiTConfig(
            **{name: sizes[name] for name in SIZES if name in sizes},
            cls_dim=sizes["z_dims"][0],
            z_dims=tuple(sizes["z_dims"]),
            encoder_blocks=config["blocks_before_routing"],
            decoder_blocks=config["blocks_after_routing"],
        )
    )
    fill(model, seed, config["keep"])
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith("v1_lambda"):
                value.add_(config["v1_lambda_added_after_fill"])
    return model


def _shift(case: Case, times: Tensor, enabled: bool) -> Tensor:
    sizes = case.config["model"]
    count = sizes["in_channels"] * sizes["input_size"] ** 2
    return shifted(times, math.sqrt(count / case.config["shift_base"])) if enabled else times


class Step:
    """The inputs of a training step, and what follows from them."""

    def __init__(self, case: Case, model: SRDiT, prefix: str = "") -> None:
        config, self.features = case.config, case[f"{prefix}features"]
        self.t = _shift(case, case[f"{prefix}t_before_shift"], config["time_shifting"])
        data = model.pack(case[f"{prefix}latents"], self.features[:, 0])
        noise = model.pack(case[f"{prefix}noise"], case[f"{prefix}noise_cls"])
        self.x_t, self.target = Interpolant(config["path_type"]).interpolate(data, noise, self.t)
        dropped = case[f"{prefix}label_drop_uniform"] < config["model"]["class_dropout_prob"]
        self.labels = torch.where(dropped, config["model"]["num_classes"], case[f"{prefix}labels"])
        uniform = case[f"{prefix}token_drop_uniform"]
        self.kept = kept_tokens(uniform, config["token_drop_ratio"])
        self.path_dropped = case[f"{prefix}path_drop_uniform"] < config["path_drop_prob"]

    def losses(self, case: Case, model: SRDiT, path_dropped: Tensor) -> Figures:
        """Return all figures of a forward pass."""
        config = case.config
        output, projected = model(self.x_t, self.t, self.labels, kept=self.kept, path_dropped=path_dropped)
        velocity, cls_velocity = model.unpack(output)
        target, cls_target = model.unpack(self.target)
        partner = previous_samples(len(velocity), velocity.device)
        denoising, cls = denoising_loss(velocity, target), denoising_loss(cls_velocity, cls_target)
        projection = alignment_loss(projected, [self.features] * len(projected))
        contrast = contrastive_loss(velocity, target, partner)
        total = denoising.mean() + config["proj_coeff"] * projection + config["cls_coeff"] * cls.mean()
        return {
            "velocity": velocity,
            "cls_velocity": cls_velocity,
            "projected": projected[0],
            "denoising_loss": denoising,
            "proj_loss": projection,
            "cls_loss": cls,
            "cfm_loss": -contrast.mean(),
            "cfm_loss_cls_not_in_total": -contrastive_loss(cls_velocity, cls_target, partner).mean(),
            "cfm_loss_linear_weighting": -(self.t * contrast).mean(),
            "total": total - config["cfm_coeff"] * self._weighted(case, contrast),
        }

    def _weighted(self, case: Case, contrast: Tensor) -> Tensor:
        return (contrast if case.config["cfm_weighting"] == "uniform" else self.t * contrast).mean()


def _inside(case: Case, model: SRDiT) -> Figures:
    """Return the figures of the training forward pass, those inside the model read by hooks."""
    before, after = model.config.encoder_blocks, model.config.decoder_blocks
    modules = {
        "class_token_embedded": model.wg_norm,
        "first": model.blocks[0],
        "encoder_hidden": model.blocks[before - 1],
        "sparse_hidden": model.blocks[-after - 1],
        "fused": model.fusion_proj,
        "decoder_hidden": model.blocks[-1],
    }
    found: Figures = {}

    def keep(name: str, _module: object, _inputs: object, output: Tensor | tuple[Tensor, Tensor]) -> None:
        found[name] = output

    hooks = [module.register_forward_hook(partial(keep, name)) for name, module in modules.items()]
    step = Step(case, model)
    losses = step.losses(case, model, step.path_dropped)
    for hook in hooks:
        hook.remove()
    found = {name: value[0] if isinstance(value, tuple) else value for name, value in found.items()} | {
        "first_values": found.pop("first")[1]
    }
    x_t, cls_t = model.unpack(step.x_t)
    inputs = {
        "t_shifted": step.t,
        "x_t": x_t,
        "cls_t": cls_t,
        "kept_token_ids": step.kept,
        "kept_rope_ids": grid_positions(step.kept),
    }
    return found | inputs | losses


def _path_dropped(case: Case, model: SRDiT) -> Figures:
    figures = Step(case, model).losses(case, model, torch.tensor(True))
    return {f"path_dropped_{name}": value for name, value in figures.items()}


def _evaluation(case: Case, model: SRDiT) -> Figures:
    step = Step(case, model)
    velocity, projected = model(step.x_t, step.t, case["labels"])
    null = torch.full_like(case["labels"], model.config.num_classes)
    without, _ = model(step.x_t, step.t, null, uncond=True)
    figures: Figures = {"eval_projected": projected[0]}
    figures["eval_velocity"], figures["eval_cls_velocity"] = model.unpack(velocity)
    figures["eval_uncond_velocity"], figures["eval_uncond_cls_velocity"] = model.unpack(without)
    return figures


def _samples(case: Case, model: SRDiT) -> Figures:
    sampler = case.config["sampler"]
    scale, cls_scale = sampler["cfg_scale"], sampler["cls_cfg_scale"]
    times = _shift(case, sde_times(sampler["num_steps"]), sampler["time_shifting"])
    plain, uncond = partial(model, project=False), partial(model, project=False, uncond=True)
    dropped = with_unconditional(plain, uncond, model.config.num_classes)
    return {
        "sampler_times_shifted": times,
        "samples_path_drop": _sampled(case, model, times, (scale, cls_scale), dropped),
        "samples_plain_cfg": _sampled(case, model, times, (scale, cls_scale)),
        "samples_path_drop_cls_scale_0": _sampled(case, model, times, (scale, 0.0), dropped),
        "samples_no_guidance": _sampled(case, model, times),
        "samples_no_guidance_no_shift": _sampled(case, model, None),
    }


def _sampled(
    case: Case,
    model: SRDiT,
    times: Tensor | None,
    scales: tuple[float, float] = (1.0, 1.0),
    both: BothVelocities | None = None,
) -> Tensor:
    """Return the latents of the reverse SDE from the recorded noise; scales are of latents and class token."""
    sampler = case.config["sampler"]
    velocity = guided(
        partial(model, project=False),
        case["sampler_labels"],
        model.config.num_classes,
        scales[0],
        sampler["guidance_low"],
        sampler["guidance_high"],
        model.guidance_scales(*scales),
        both,
    )
    start = model.pack(case["sampler_start"], case["sampler_start_cls"])
    interpolant = Interpolant(case.config["path_type"])
    state = euler_maruyama(velocity, start, sampler["num_steps"], _recorded_noise(case, model), interpolant, times)
    return model.latents_of(state)


def _recorded_noise(case: Case, model: SRDiT) -> Noise:
    draws, cls_draws = case["sampler_noise"], case["sampler_noise_cls"]
    return lambda step, like: model.pack(draws[step], cls_draws[step])


def _training(case: Case) -> Figures:
    config, model = case.config, _model(case, case.config["training_fill_seed"])
    before, ema, rows = weights_of(model), Ema(model, config["ema_decay"]), []
    trained = trainable(model)
    optimizer = torch.optim.AdamW(trained, config["learning_rate"], weight_decay=0)
    for number in case.steps():
        step = Step(case, model, f"step{number}_")
        losses = step.losses(case, model, step.path_dropped)
        norm = optimize(losses["total"], optimizer, config["max_grad_norm"])
        ema.update(model)
        row = [losses[f"{name}_loss"].mean() for name in ("denoising", "proj", "cls", "cfm")]
        rows.append([each.item() for each in (*row, losses["total"], norm)])
    figures = moves(case, before, weights_of(model), "model_move.") | moves(case, before, ema.weights, "ema_move.")
    return figures | {"train_denoising_proj_cls_cfm_total_gradnorm": torch.tensor(rows)}
