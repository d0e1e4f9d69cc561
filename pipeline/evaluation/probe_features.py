"""Probes and their features, one vector per image: token means of a SiT's blocks and of stored encoders."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import normalize

from ...config import ProbeConfig
from ...diffusion.interpolant import Interpolant
from ...diffusion.posterior import sample_posterior, with_epsilon
from ...errors import ConfigError
from ...metrics import cknna, linear_probe
from ...models.sit import SiT
from ...stores import Store
from ...stores.layout import MOMENTS, features_group, latents_group
from ...stores.tokens import read_tokens
from ..artifacts.checkpoints import TrainedModel
from ..runtime.device import DTYPES
from ..runtime.progress import progress
from ..runtime.seeds import RandomStreams, shuffled

TOPK = 10  # neighbors of CKNNA


class ProbedImages:
    """Images of a store in an order that depends on the seed alone.

    The linear classifier is fitted to the first `num_train` and tested on the others.
    """

    def __init__(self, store: Store, latents: str, encoders: Sequence[str], config: ProbeConfig) -> None:
        self._store, self._latents, self._config = store, latents_group(latents), config
        self._streams = RandomStreams(config.seed)
        valid = store.valid_indices([self._latents, *map(features_group, encoders)])
        self.rows = shuffled(valid, config.seed)[: config.num_images]
        self.labels = torch.from_numpy(store.labels[self.rows].astype(np.int64))
        self.num_train = len(self.rows) - max(1, round(len(self.rows) * config.test_share))

    def of_encoder(self, encoder: str) -> Tensor:
        """Return the mean over the patch tokens of each image, `[N, D]` float32."""
        group = features_group(encoder)
        means = [read_tokens(self._store, group, rows).mean(1) for rows in self._batches(encoder)]
        return torch.cat(means)

    def of_blocks(self, trained: TrainedModel, time: float) -> dict[int, Tensor]:
        """Return the mean over the tokens of each image after every requested block, `[N, D]` float32 by block.

        As in REPA's probing, the model gets latents drawn from the posterior and noised to `time`, without a label. The
        draws for an image depend on (seed, its index) alone, so they are the same for every checkpoint and time.
        """
        config, model = self._config, sit_of(trained)
        sit, device = model.config, model.pos_embed.device
        blocks = sorted(set(config.block)) or list(range(1, sit.depth + 1))
        interpolant = Interpolant(trained.config.path_type)
        statistics = trained.store.latents_scale, trained.store.latents_bias
        scale, bias = (
            torch.tensor(values).reshape(1, -1, 1, 1)
            for values in with_epsilon(*statistics, trained.config.latents_eps)
        )
        array = self._store.group(self._latents).latents_array
        name = f"{self._latents}/{array}"
        found: dict[int, list[Tensor]] = {block: [] for block in blocks}
        for rows in self._batches(f"step {trained.step:,}, time {time:g}"):
            stored = torch.from_numpy(self._store.read([name], rows)[name])
            shape = torch.Size([scale.shape[1], *stored.shape[2:]])
            draws = torch.stack([_draws(self._streams, row, shape) for row in rows.tolist()])
            is_drawn = array == MOMENTS
            data = sample_posterior(stored, draws[:, 0], scale, bias) if is_drawn else stored.float() * scale + bias
            times = torch.full((len(rows),), time)
            x_t = interpolant.interpolate(data, draws[:, 1], times)[0].to(device)
            labels = torch.full((len(rows),), sit.null_label, device=device)
            with torch.no_grad(), torch.autocast(device.type, DTYPES[config.precision], config.precision != "fp32"):
                states = model.hidden_states(x_t, times.to(device), labels, blocks)
            for block, tokens in zip(blocks, states, strict=True):
                found[block].append(tokens.float().mean(1).cpu())
        return {block: torch.cat(parts) for block, parts in found.items()}

    def _batches(self, description: str) -> Iterator[npt.NDArray[np.int64]]:
        size = self._config.batch_size
        with progress(f"probe: {description}", len(self.rows), "images") as bar:
            for start in range(0, len(self.rows), size):
                rows = self.rows[start : start + size]
                yield rows
                bar.update(len(rows))


def sit_of(trained: TrainedModel) -> SiT:
    """Return the model of a checkpoint; raise ConfigError unless it is a SiT, whose blocks can be probed."""
    if not isinstance(trained.model, SiT):
        raise ConfigError(f"the model is a {trained.config.model}: probe reads the blocks of a SiT")
    return trained.model


def _draws(streams: RandomStreams, row: int, shape: torch.Size) -> Tensor:
    return torch.randn((2, *shape), generator=streams.of_image(row))


def probe_checkpoint(
    name: str, trained: TrainedModel, images: ProbedImages, target: dict[str, Tensor], times: Sequence[float]
) -> list[dict[str, Any]]:
    """Return one row per time and block of a checkpoint, named `name` in the rows."""
    device = sit_of(trained).pos_embed.device
    rows: list[dict[str, Any]] = []
    for time in times:
        for block, features in images.of_blocks(trained, time).items():
            own = features.to(device)
            row: dict[str, Any] = {"checkpoint": name, "step": trained.step, "time": time, "block": block}
            row["accuracy"] = accuracy(own, images)
            for encoder, tokens in target.items():
                row[f"cknna_{encoder}"] = cknna(normalize(own), normalize(tokens), TOPK)
            rows.append(row)
    return rows


def accuracy(features: Tensor, images: ProbedImages) -> float:
    """Return the test accuracy of a linear classifier on features `[N, D]` of the images."""
    cut = images.num_train
    return linear_probe(features[:cut], images.labels[:cut], features[cut:], images.labels[cut:])
