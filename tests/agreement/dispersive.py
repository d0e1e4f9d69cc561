"""The dispersive loss: on given activations with its gradients, inside SiT, three training steps, guided samples.

The published model also predicts a variance, whose channels are cut off here, and its time runs from noise to data.
"""

from __future__ import annotations

import re

import torch
from case import Case, Ema, Figures, filled, moves, optimize, trainable, weights_of
from torch import Tensor, nn

from repa_pipe.diffusion.guidance import guided
from repa_pipe.diffusion.loss import denoising_loss, dispersive_loss
from repa_pipe.diffusion.samplers import euler
from repa_pipe.diffusion.times import falling_grid
from repa_pipe.models.sit import SiT, SiTConfig
from repa_pipe.models.sit.model import block_tap


def recognizes(case: Case) -> bool:
    return case.config.get("method") == "dispersive"


def is_input(case: Case, name: str) -> bool:
    return name in case.config["input_keys"]


class _WithVariance(SiT):
    """A SiT with twice the outputs, as published; the velocity is the first half."""

    def __init__(self, config: SiTConfig) -> None:
        super().__init__(config)
        last = self.final_layer.linear
        self.final_layer.linear = nn.Linear(last.in_features, 2 * last.out_features)

    def _velocity(self, tokens: Tensor, condition: Tensor) -> Tensor:
        return super()._velocity(tokens, condition).chunk(2, dim=1)[0]


def _model(case: Case, seed: int) -> SiT:
    settings = {key: value for key, value in case.config["model"].items() if key != "learn_sigma"}
    config = SiTConfig.from_dict(settings | {"z_dims": (), "encoder_depth": 1})
    model = _WithVariance(config) if case.config["model"]["learn_sigma"] else SiT(config)
    tensors = filled(model.state_dict(), seed, case.config["keep"])
    for name in tensors:
        if re.fullmatch(r"blocks\.\d+\.adaLN_modulation\..*", name):
            tensors[name] = tensors[name] * case.config["fill_scale_of_blocks_adaLN"]
    tensors["x_embedder.proj.weight"] = (
        tensors["x_embedder.proj.weight"] * case.config["fill_scale_of_x_embedder_weight"]
    )
    model.load_state_dict(tensors)
    return model


def _published(model: SiT, x: Tensor, t: Tensor, labels: Tensor, taps: tuple[str, ...] = ()) -> tuple:
    """Return the published velocity, data - noise, at a published time, which is 1 at the data: time is not converted.

    A model that was trained there takes these times as they are.
    """
    return model(x, t, labels, taps=taps) if taps else model(x, t, labels)


def compute(case: Case) -> Figures:
    figures = _on_activations(case)
    model = _model(case, case.config["fill_seed"])
    with torch.no_grad():
        figures |= _step(case, model, "") | _samples(case, model)
    return figures | _training(case)


def _on_activations(case: Case) -> Figures:
    figures: Figures = {}
    for key in case.matching("act_.*"):
        name = key.removeprefix("act_")
        hidden = case[key].clone().requires_grad_()
        loss = dispersive_loss(hidden, case.config["temperature"])
        loss.backward()
        figures |= {f"dispersive_{name}": loss, f"dispersive_{name}_grad": hidden.grad}
    return figures


def _step(case: Case, model: SiT, prefix: str) -> Figures:
    config = case.config
    sizes, other = config["model"], config["formula_only"]
    drop = case[f"{prefix}label_drop_uniform"] < sizes["class_dropout_prob"]
    labels = torch.where(drop, sizes["num_classes"], case[f"{prefix}labels"])
    data, noise, t = case[f"{prefix}latents"], case[f"{prefix}noise"], case[f"{prefix}t"]
    share = t.reshape(-1, 1, 1, 1)
    x_t, target = share * data + (1 - share) * noise, data - noise
    last, early = block_tap(sizes["depth"]), block_tap(other["block_index_from_one"])
    velocity, _, tapped = _published(model, x_t, t, labels, (last, early))
    dispersive = dispersive_loss(tapped[last], config["temperature"])
    plain = denoising_loss(velocity, target)
    losses = plain + config["dispersive_weight"] * dispersive
    return {
        "x_t": x_t,
        "velocity": velocity,
        "last_block_output": tapped[last],
        "early_block_output": tapped[early],
        "dispersive_loss": dispersive,
        "loss_without_dispersive": plain,
        "loss": losses,
        "total": losses.mean(),
        "formula_only_early_block_loss": dispersive_loss(tapped[early], other["temperature"]),
    }


def _samples(case: Case, model: SiT) -> Figures:
    settings, start, labels = case.config["sampler"], case["sampler_start"], case["sampler_labels"]
    scales = torch.ones(len(start[0]), 1, 1)
    scales[:3] = settings["cfg_scale"]  # published: the first three channels
    null = case.config["model"]["num_classes"]

    def ours(x: Tensor, t: Tensor, labels: Tensor) -> tuple[Tensor]:
        return (-_published(model, x, 1 - t, labels)[0],)

    velocity = guided(ours, labels, null, settings["cfg_scale"], 0.0, 1.0, scales)
    points = settings["grid_points"]
    times = falling_grid(points, 0.0)
    plain = euler(guided(ours, labels, null), start, points, times=times)
    t = torch.tensor(0.7)
    guided_half = -velocity(start, t)
    unguided = -ours(start, t.expand(len(start)), torch.full_like(labels, null))[0]
    second = torch.cat([guided_half[:, :3], unguided[:, 3:]], dim=1)
    return {
        "samples_cfg": euler(velocity, start, points, times=times),
        "samples_plain": plain,
        "cfg_velocity_at_0.3": torch.cat([guided_half, second]),
    }


def _training(case: Case) -> Figures:
    config, model = case.config, _model(case, case.config["training_fill_seed"])
    before, ema, rows = weights_of(model), Ema(model, config["ema_decay"]), []
    trained = trainable(model)
    optimizer = torch.optim.AdamW(trained, config["learning_rate"], weight_decay=0.0)
    for step in case.steps():
        found = _step(case, model, f"step{step}_")
        norm = optimize(found["total"], optimizer, config["max_grad_norm"])
        ema.update(model)
        names = ("loss_without_dispersive", "dispersive_loss", "total")
        rows.append([*(found[name].mean().item() for name in names), norm.item()])
    figures: Figures = {"train_denoising_dispersive_total_gradnorm": torch.tensor(rows)}
    figures |= moves(case, before, weights_of(model), "model_move.")
    return figures | moves(case, before, ema.weights, "ema_move.")
