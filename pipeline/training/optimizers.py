"""The optimizers of a run: AdamW for all weights, or Muon for matrices and AdamW for the rest."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torch.optim import AdamW, Optimizer

from ...config import TrainConfig
from .muon import Muon

ADAMW, MUON = "adamw", "muon"


def make_optimizers(config: TrainConfig, model: nn.Module) -> dict[str, Optimizer]:
    """Return the optimizers by the names under which checkpoints hold their states, as RAEv2 does.

    Muon gets every weight of two axes, also those of label tables and final layers, as published.
    """
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    if config.optimizer == ADAMW:
        return {ADAMW: _adamw(config, trained)}
    matrices = [weight for weight in trained if weight.ndim == 2]
    muon = Muon(
        matrices,
        lr=config.learning_rate,
        weight_decay=config.adam_weight_decay,
        half=config.mixed_precision != "fp32",
    )
    return {MUON: muon, ADAMW: _adamw(config, [weight for weight in trained if weight.ndim != 2])}


def _adamw(config: TrainConfig, weights: Sequence[nn.Parameter]) -> AdamW:
    return AdamW(
        weights,
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        weight_decay=config.adam_weight_decay,
        eps=config.adam_epsilon,
        fused=True,
    )
