"""The same training steps twice, side by side: with tokens from the store, and with the encoder online."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from ...config import TrainConfig
from ...models.encoders import load_encoder
from ...sources import decode_crop, open_recorded, records_of
from ...stores import Batch, Store, open_store
from ..artifacts.run_folder import RunFolder
from ..reporting.steps import StepComparison, Steps, StepTimes
from ..runtime.device import choose_device
from ..runtime.distributed import DistributedContext
from ..runtime.seeds import seed_weights
from .precision import with_precision
from .setup import resolve
from .trainer import Trainer

WARM_UP = 2  # first steps, which are not timed

_ALONE = DistributedContext(0, 1)
_NO_RUN = RunFolder(Path("unused"))


class OnlineEncoder:
    """Encodes the images of a batch, as a trainer without a store does in every step.

    Args:
        store: the store whose source holds the images.
        encoders: names of the encoders; their weights come from their hubs.
        device: where the encoders run, in the precision that `encode` uses there by default.
        weights: files of weights by encoder, instead of those of its hub.
    """

    def __init__(
        self, store: Store, encoders: Sequence[str], device: torch.device, weights: Mapping[str, Path] | None = None
    ) -> None:
        self._store = store
        self._source = open_recorded(store.manifest.source)
        dtype = torch.float16 if device.type == "cuda" else None
        resolution = store.manifest.resolution
        files = weights or {}
        self._encoders = [load_encoder(name, files.get(name), resolution, device, dtype) for name in encoders]

    def decode(self, indices: npt.NDArray[np.int64]) -> Tensor:
        """Read, decode and crop images: uint8 `[B, 3, R, R]`."""
        records = records_of(self._store.samples.take(indices))
        crops = [decode_crop(self._source.read(record), self._store.manifest.resolution) for record in records]
        return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)

    def encode(self, images: Tensor) -> list[Tensor]:
        """Return the patch tokens float32 `[B, N, D]` of each encoder."""
        return [encoder(images).patch_tokens for encoder in self._encoders]


def compare_steps(config: TrainConfig, steps: int, weights: Mapping[str, Path] | None = None) -> StepComparison:
    """Train two models from the same weights in turn, one from the store and one with the encoder online.

    Both take the same steps: the same samples, draws and targets. Batches are read in the step, not prefetched.

    Args:
        config: a run aligned with encoders whose tokens are stored as float16, or with such tokens as latents. Nothing
            is written.
        steps: number of steps, more than `WARM_UP`.
        weights: files of weights by encoder, instead of those of its hub.

    Raises:
        ConfigError, StoreError, WeightsError: the settings, the store or the encoders are unusable.
    """
    config.require(not config.attn_coeff, "attn_coeff", "must be 0: the encoder online gives patch tokens only")
    device = choose_device(config.device)
    with open_store(config.store) as store:
        config = with_precision(resolve(config, store), _NO_RUN, device, _ALONE)
        trainers = [make_trainer(config, store, device) for _ in range(2)]
        latents = [config.token_latents] if config.token_latents else []
        encoder = OnlineEncoder(store, list(dict.fromkeys([*latents, *config.enc_type])), device, weights)
        stored: list[_Step] = []
        online: list[_Step] = []
        cosine = 1.0
        for _ in range(steps):
            step, tokens = _step_from_store(trainers[0])
            online_step, online_tokens = _step_online(trainers[1], encoder)
            stored.append(step)
            online.append(online_step)
            cosine = min(cosine, *map(_smallest_cosine, tokens, online_tokens))
    return StepComparison(
        stored=_collect(stored),
        online=_collect(online),
        losses=trainers[0].objective.names,
        batch_size=config.batch_size,
        device=_describe(device),
        token_cosine=cosine,
    )


def make_trainer(config: TrainConfig, store: Store, device: torch.device) -> Trainer:
    """Return a trainer at step 0 with the initial weights of `repa-pipe train`. Its steps write no files."""
    seed_weights(config.seed)
    return Trainer(config, store, device, _ALONE, _NO_RUN)


def train_step(trainer: Trainer, batch: Batch) -> npt.NDArray[np.float32]:
    """Take the trainer's next step; return its losses, in the order of `objective.names`."""
    values = trainer.train_step(batch)
    trainer.step += 1
    losses: npt.NDArray[np.float32] = values[: len(trainer.objective.names)].cpu().numpy()
    return losses


@dataclass(frozen=True, slots=True)
class _Step:
    times: StepTimes
    losses: npt.NDArray[np.float32]


def _step_from_store(trainer: Trainer) -> tuple[_Step, list[Tensor]]:
    clock = _Clock(trainer.device)
    batch = trainer.dataset.read(trainer.dataset.indices_of_step(trainer.step)).to(trainer.device)
    read = clock.lap()
    losses = train_step(trainer, batch)
    first = [] if batch.latent_tokens is None else [batch.latent_tokens]
    tokens = first + batch.patch_tokens[_repeated(trainer.config) :]
    return _Step(StepTimes(read, 0.0, 0.0, clock.lap()), losses), tokens


def _repeated(config: TrainConfig) -> int:
    """Return 1 if the first encoder that the run is aligned with is also that of the latents."""
    return int(config.token_latents is not None and config.enc_type[:1] == (config.token_latents,))


def _step_online(trainer: Trainer, encoder: OnlineEncoder) -> tuple[_Step, list[Tensor]]:
    clock = _Clock(trainer.device)
    indices = trainer.dataset.indices_of_step(trainer.step)
    batch = _without_tokens(trainer, indices)
    read = clock.lap()
    images = encoder.decode(indices)
    decode = clock.lap()
    tokens = encoder.encode(images)
    encode = clock.lap()
    targets = tokens
    if trainer.config.token_latents:
        batch = batch._replace(latent_tokens=tokens[0])
        targets = tokens[1 - _repeated(trainer.config) :]
    losses = train_step(trainer, batch._replace(patch_tokens=targets, token_scales=[None] * len(targets)))
    return _Step(StepTimes(read, decode, encode, clock.lap()), losses), tokens


def _without_tokens(trainer: Trainer, indices: npt.NDArray[np.int64]) -> Batch:
    """Read what a step needs besides the output of encoders: labels, and a VAE's latents."""
    if not trainer.config.token_latents:
        return trainer.dataset.read(indices, tokens=False).to(trainer.device)
    labels = torch.from_numpy(trainer.dataset.store.labels_at(indices).astype(np.int64))
    return Batch(indices, labels, None, [], [], []).to(trainer.device)


def _collect(steps: Sequence[_Step]) -> Steps:
    return Steps([step.times for step in steps[WARM_UP:]], np.stack([step.losses for step in steps]))


def _smallest_cosine(stored: Tensor, online: Tensor) -> float:
    return float(cosine_similarity(stored.float(), online, dim=-1)[online.any(-1)].min())


def _describe(device: torch.device) -> str:
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return f"CPU, {torch.get_num_threads()} threads" if device.type == "cpu" else device.type


class _Clock:
    """Measures laps. A lap ends when the device has finished its work."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._last = time.perf_counter()

    def lap(self) -> float:
        """Return the seconds since the last lap."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        return seconds
