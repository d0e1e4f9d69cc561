"""REG's training: the class token of an encoder is noised and denoised with the latents (arXiv 2507.01467)."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar

import torch
from torch import Tensor

from ....config import TrainConfig
from ....diffusion.loss import denoising_loss
from ....errors import StoreError
from ....models.sit import SiT
from ....models.sit.entangled import EntangledSiT
from ....stores import Batch, Store
from ....stores.layout import features_group
from ...artifacts.checkpoints import StoreMetadata
from ...runtime.distributed import DistributedContext
from ..objective import Inputs, Objective
from .alignment import Alignment

CLS_TOKEN = "cls_token"
_STREAM = 1 << 31  # the class token's noise has a generator of its own, so that all other draws are the plain trainer's


def cls_dim(config: TrainConfig, store: Store) -> int:
    """Width of the first encoder's class token; StoreError when one of the encoders has none."""
    for encoder in config.enc_type:
        group = store.group(features_group(encoder))
        if CLS_TOKEN not in group.shard_indexes:
            raise StoreError(
                f"{encoder} has no class token in {store.location}, which --cls-coeff needs: take an encoder that "
                "has one (docs/encoders.md), or --cls-coeff 0"
            )
    return store.group(features_group(config.enc_type[0])).shard_indexes[CLS_TOKEN].layout.spec.sample_shape[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class RegInputs(Inputs):
    """Inputs with a class token; the targets begin with each encoder's own."""

    cls_token: Tensor  # [B, D] float32
    cls_noise: Tensor  # [B, D] float32


class RegObjective(Objective):
    """denoising + proj_coeff * alignment + cls_coeff * the class token's denoising loss; alignment of 1 + N tokens."""

    names: ClassVar[tuple[str, ...]] = (*Objective.names, "cls_loss")
    model: EntangledSiT

    def inputs(self, batch: Batch, step: int, ranks: DistributedContext) -> RegInputs:
        """As of the plain objective, and the class token with its noise."""
        plain = super().inputs(batch, step, ranks)
        classes = [token.float() for token in batch.cls_tokens if token is not None]
        count, seed = self._config.batch_size, (self._config.seed << 32) + _STREAM + step
        generator = torch.Generator(classes[0].device).manual_seed(seed)
        noise = torch.randn((count, classes[0].shape[1]), generator=generator, device=classes[0].device)
        values = {field.name: getattr(plain, field.name) for field in fields(plain)}
        values["targets"] = [
            torch.cat([cls_token.unsqueeze(1), tokens.float()], dim=1)
            for cls_token, tokens in zip(classes, plain.targets, strict=False)  # there are none after alignment
        ]
        return RegInputs(**values, cls_token=classes[0], cls_noise=noise[ranks.rows(count)])

    def forward(self, inputs: Inputs) -> Tensor:
        """`[4]`, as `names` says."""
        assert isinstance(inputs, RegInputs)
        data = self.model.pack(self.latents(inputs), inputs.cls_token)
        noise = self.model.pack(inputs.noise, inputs.cls_noise)
        x_t, target = self._interpolant.interpolate(data, noise, inputs.times)
        velocity, projected = self.model(x_t, inputs.times, self.labels(inputs), project=bool(inputs.targets))
        denoising, cls_loss = (
            denoising_loss(*pair).mean()
            for pair in zip(self.model.unpack(velocity), self.model.unpack(target), strict=True)
        )
        alignment = self.align(projected, inputs.targets, denoising)
        loss = denoising + inputs.proj_coeff * alignment + self._config.cls_coeff * cls_loss
        return torch.stack([loss, denoising, alignment, cls_loss])


def make_objective(model: SiT, config: TrainConfig, facts: StoreMetadata, alignment: Alignment) -> Objective:
    """The objective that a config asks for."""
    kind = RegObjective if config.cls_coeff else Objective
    return kind(model, config, facts, alignment)
