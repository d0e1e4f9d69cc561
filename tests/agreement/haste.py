"""HASTE: attention of SiT and of the last blocks of DINOv2, their loss, three training steps, two of them aligned."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

import torch
from case import Case, Figures, drawn_latents, fill, filled, moves, optimize, trainable, weights_of
from irepa_ldm import UNUSED
from rae_ditdh import is_input
from raev2_layers import block_shapes
from safetensors.torch import save_file
from torch import Tensor

from repa_pipe.diffusion.interpolant import Interpolant
from repa_pipe.diffusion.loss import alignment_loss, attention_loss, denoising_loss
from repa_pipe.models.encoders.encoder import Encoder
from repa_pipe.models.encoders.last_blocks import LastBlocks
from repa_pipe.models.encoders.registry import find_entry
from repa_pipe.models.encoders.token_choice import TokenChoice
from repa_pipe.models.sit import SiT, SiTConfig, drop_labels
from repa_pipe.models.sit.model import attention_tap

__all__ = ["compute", "is_input", "recognizes"]
ENCODER = "dinov2-vit-b"


def recognizes(case: Case) -> bool:
    return "attn_coeff" in case.config


def compute(case: Case) -> Figures:
    encoder = _Teacher(case)
    with torch.no_grad():
        figures = encoder.figures(case) | _evaluation(case, encoder)
    return figures | _training(case, encoder)


class _Teacher:
    """The encoder: its patch tokens, and queries and keys recomputed from the input of the first aligned block."""

    def __init__(self, case: Case) -> None:
        first, last = min(case.config["teacher_blocks_from_0"]), max(case.config["teacher_blocks_from_0"])
        images, depth = case["encoder_images"], case.config["encoder"]["depth"]
        tokens, network = _encode(case, TokenChoice(block=depth), images)
        self.patch_tokens = tokens[:, 1:]
        inputs, _ = _encode(case, TokenChoice(block=first, no_norm=True), images)
        self._blocks = LastBlocks(network.blocks[first : last + 1], "")
        found = self._blocks(inputs)
        self.queries_keys = [found[number - first] for number in case.config["teacher_blocks_from_0"]]
        heads = self._blocks.num_heads
        logits = self._blocks.logits(inputs, heads)
        self.logits = [logits[number - first] for number in case.config["teacher_blocks_from_0"]]

    def figures(self, case: Case) -> Figures:
        logits = [_recorded(case, each, "teacher") for each in self.logits]
        return {
            "encoder_patch_tokens": self.patch_tokens,
            "teacher_q": torch.stack([each.query for each in self.queries_keys]),
            "teacher_k": torch.stack([each.key for each in self.queries_keys]),
            "teacher_logits": torch.stack(logits),
            "teacher_maps": torch.stack(logits).softmax(dim=-1),
        }


def _recorded(case: Case, logits: Tensor, side: str) -> Tensor:
    """Return the recorded heads and queries of logits [B, heads, N, N]."""
    return logits[:, case.config[f"recorded_{side}_heads"]][:, :, case.config["recorded_query_tokens"]]


@torch.no_grad()
def _encode(case: Case, choice: TokenChoice, images: Tensor) -> tuple[Tensor, torch.nn.Module]:
    """Return tokens [B, 1 + N, D] of preprocessed images, class token first, and the network."""
    settings = {key: value for key, value in case.config["encoder"].items() if key not in {"block_chunks", "in_chans"}}
    size, patch, width = settings["img_size"], settings["patch_size"], settings["embed_dim"]
    shapes = block_shapes(settings, int(settings["mlp_ratio"] * width)) | {
        "pos_embed": (1, (size // patch) ** 2 + 1, width),
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
    }
    entry = dataclasses.replace(
        find_entry(ENCODER),
        options=settings,
        width=width,
        depth=settings["depth"],
        patch=patch,
        image_size=size,
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        empty = {name: torch.zeros(shape) for name, shape in shapes.items()}
        save_file(filled(empty, case.config["encoder_fill_seed"], ()), path)
        network = entry.weights.load(ENCODER, entry.architecture, settings, path)
    encoder = Encoder(
        ENCODER,
        entry,
        network,
        choice=choice,
        resolution=16 * size // patch,
        device=torch.device("cpu"),
        dtype=None,
    )
    features, prefix = encoder._features(images)
    return torch.cat([prefix, features.flatten(2).transpose(1, 2)], dim=1), network


def _model(case: Case) -> SiT:
    model = SiT(SiTConfig.from_dict({key: value for key, value in case.config["model"].items() if key not in UNUSED}))
    fill(model, case.config["fill_seed"], case.config["fill_keep"])
    return model


def _taps(case: Case) -> list[str]:
    return [attention_tap(number) for number in case.config["student_blocks_from_0"]]


def _path(case: Case, data: Tensor, prefix: str = "") -> tuple[Tensor, Tensor]:
    """Return x_t and the velocity."""
    assert case.config["prediction"] == "v"
    return Interpolant(case.config["path"]).interpolate(data, case[f"{prefix}noise"], case[f"{prefix}t"])


def _evaluation(case: Case, encoder: _Teacher) -> Figures:
    config, model = case.config, _model(case)
    x_t, target = _path(case, case["x0"])
    velocity, projected, tapped = model(x_t, case["t"], case["labels"], taps=_taps(case))
    logits = [tapped[name] for name in _taps(case)]
    recorded = torch.stack([_recorded(case, each, "student") for each in logits])
    heads = config["student_heads_aligned"]
    pairs = [(ours[:, :heads], theirs[:, :heads]) for ours, theirs in zip(logits, encoder.logits, strict=True)]
    attention = attention_loss(*zip(*pairs, strict=True))
    alignment = alignment_loss(projected, [encoder.patch_tokens])
    denoising = denoising_loss(velocity, target)
    return {
        "xt": x_t,
        "velocity": velocity,
        "projected": projected[0],
        "student_logits": recorded,
        "student_maps": recorded[..., :1, :].softmax(dim=-1),
        "attention_cross_entropy_by_block_sample_head": torch.stack([_by_sample_and_head(*pair) for pair in pairs]),
        "attention_loss": attention,
        "alignment_loss": alignment,
        "denoising_loss": denoising,
        "total_loss": denoising.mean() + config["proj_coeff"] * alignment + config["attn_coeff"] * attention,
    }


def _by_sample_and_head(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the loss of each sample and head alone [B, heads]."""
    pairs = zip(student.flatten(0, 1), teacher.flatten(0, 1), strict=True)
    losses = [attention_loss([ours[None, None]], [theirs[None, None]]) for ours, theirs in pairs]
    return torch.stack(losses).reshape(student.shape[:2])


def _training(case: Case, encoder: _Teacher) -> Figures:
    config, model = case.config, _model(case)
    trained = trainable(model)
    adamw = torch.optim.AdamW(trained, **config["optimizer"])
    before, rows, figures = weights_of(model), [], {}
    for step in case.steps():
        data = drawn_latents(case, step)
        denoising, alignment, attention = _losses(case, model, encoder, data, step)
        total = denoising + config["proj_coeff"] * alignment + config["attn_coeff"] * attention
        norm = optimize(total, adamw, config["max_grad_norm"])
        rows.append([each.item() for each in (denoising, alignment, attention, total, norm)])
        figures |= moves(case, before, weights_of(model), f"move{step + 1}.")
    return figures | {"train_denoising_alignment_attention_total_gradnorm": torch.tensor(rows)}


def _losses(case: Case, model: SiT, encoder: _Teacher, data: Tensor, step: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the three losses of a step; after the stop nothing is asked of the model but the velocity."""
    x_t, target = _path(case, data, f"step{step}_")
    t, dropped = case[f"step{step}_t"], case[f"step{step}_dropout_uniform"] < model.config.class_dropout_prob
    labels = drop_labels(case[f"step{step}_labels"], dropped, model.config.num_classes)
    if step >= case.config["early_stop_point"]:
        return denoising_loss(model(x_t, t, labels, project=False)[0], target).mean(), *torch.zeros(2)
    velocity, projected, tapped = model(x_t, t, labels, taps=_taps(case))
    heads = case.config["student_heads_aligned"]
    attention = attention_loss(
        [tapped[name][:, :heads] for name in _taps(case)], [each[:, :heads] for each in encoder.logits]
    )
    return denoising_loss(velocity, target).mean(), alignment_loss(projected, [encoder.patch_tokens]), attention
