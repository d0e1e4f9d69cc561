"""REG (arXiv 2507.01467): the class token of an encoder is noised and denoised together with the latents."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from ....config import TrainConfig
from ....diffusion.loss import denoising_loss
from ....models.class_token import ClassTokenModel
from ....stores import Batch
from ...runtime.distributed import DistributedContext
from ...runtime.seeds import RandomStreams, Stream
from ..model_config import CLS_TOKEN
from .term import ModelOutput, Prepared, Term

CLS_NOISE = "cls_noise"


class ClassTokenTerm(Term):
    """Mean over samples of the denoising loss of the class token, times `--cls-coeff`.

    The model's state is then latents and class token in one vector per sample (`extend`).
    """

    metric: ClassVar[str] = "cls_loss"

    def __init__(self, config: TrainConfig, model: ClassTokenModel, streams: RandomStreams) -> None:
        self._config, self._streams, self._pack, self._unpack = config, streams, model.pack, model.unpack

    def prepare(self, batch: Batch, step: int, ranks: DistributedContext) -> Prepared:
        """Return `cls_token` and `cls_noise`, [B, D] float32; the noise is drawn for the whole global batch."""
        first = next(token for token in batch.cls_tokens if token is not None).float()
        generator = self._streams.generator(Stream.CLASS_TOKEN, step, first.device)
        count = self._config.batch_size
        noise = torch.randn((count, first.shape[1]), generator=generator, device=first.device)
        return {CLS_TOKEN: first, CLS_NOISE: noise[ranks.rows(count)]}

    def extend(self, data: Tensor, noise: Tensor, prepared: Prepared) -> tuple[Tensor, Tensor]:
        """Return data and noise as the model's state: latents and class token in one vector per sample."""
        return self._pack(data, prepared[CLS_TOKEN]), self._pack(noise, prepared[CLS_NOISE])

    def weight(self, step: int) -> float:
        """Return `--cls-coeff`."""
        return self._config.cls_coeff

    def loss(self, output: ModelOutput, prepared: Prepared) -> Tensor:
        """Return the mean over the samples."""
        return denoising_loss(self._unpack(output.velocity)[1], self._unpack(output.target)[1]).mean()
