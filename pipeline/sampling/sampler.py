"""Images from a model: any block of them, each the same whatever block it is made in.

Image i depends on (seed, i), the model and the settings: its label, its noise and the noise of its SDE steps come
from generators of its own.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...config import SampleConfig
from ...diffusion.interpolant import Interpolant
from ...diffusion.samplers import Noise, euler, euler_maruyama, guided
from ...errors import ConfigError
from ...models.vae import load_vae
from ..artifacts.checkpoints import TrainedModel
from ..artifacts.images import Block
from ..runtime.device import DTYPES


class Sampler:
    """Makes any block of the images."""

    def __init__(self, config: SampleConfig, trained: TrainedModel, device: torch.device) -> None:
        self._config, self._device = config, device
        self._sit = trained.model.config
        self._plain = trained.model.to(device)
        self._model: Any = torch.compile(self._plain) if config.compile else self._plain
        self._interpolant = Interpolant(trained.config.path_type)  # type: ignore[arg-type]  # the config has checked it
        vae = load_vae(config.vae or trained.store.vae, device=device)
        self._vae = vae.with_scale(list(trained.store.latents_scale), list(trained.store.latents_bias))
        self._list = _label_list(config.labels, self._sit.num_classes)

    def all_labels(self) -> npt.NDArray[np.int64]:
        """Labels of all images, `[num_fid_samples]`."""
        return np.array([self._label(i) for i in range(self._config.num_fid_samples)], dtype=np.int64)

    def latents(self, indices: range) -> Tensor:
        """Scaled latents of the images `indices`, float32 `[B, C, h, w]` on the device."""
        config = self._config
        generators = [image_generator(config.global_seed, i) for i in indices]
        shape = self._plain.state_shape
        noise = torch.stack([torch.randn(shape, generator=generator) for generator in generators]).to(self._device)
        labels = torch.tensor([self._label(i) for i in indices], device=self._device)
        velocity = guided(
            partial(self._model, project=False),
            labels,
            self._sit.num_classes,
            config.cfg_scale,
            config.guidance_low,
            config.guidance_high,
        )
        with torch.autocast(self._device.type, DTYPES[config.precision], config.precision != "fp32"):
            if config.mode == "ode":
                state = euler(velocity, noise, config.num_steps, config.heun)
            else:
                state = euler_maruyama(velocity, noise, config.num_steps, _step_noise(generators), self._interpolant)
        return self._plain.latents_of(state).float()

    def decode(self, latents: Tensor) -> Block:
        """The images of latents, uint8 `[B, H, W, 3]`."""
        return self._vae.decode(latents).permute(0, 2, 3, 1).contiguous().cpu().numpy()

    def _label(self, index: int) -> int:
        classes = self._sit.num_classes
        if self._list is not None:
            return self._list[index % len(self._list)]
        if self._config.labels == "balanced":
            return index % classes
        raw = np.random.Philox(counter=[0, 0, 0, index], key=self._config.global_seed).random_raw()
        return int(raw % classes)


def image_generator(seed: int, index: int) -> torch.Generator:
    """The generator of image `index`: its start noise is drawn first, then the noise of its SDE steps."""
    return torch.Generator().manual_seed((seed << 32) + index)


def _step_noise(generators: list[torch.Generator]) -> Noise:
    def noise(step: int, like: Tensor) -> Tensor:
        draws = [torch.randn(like.shape[1:], generator=generator, dtype=like.dtype) for generator in generators]
        return torch.stack(draws).to(like.device)

    return noise


def _label_list(labels: str, num_classes: int) -> list[int] | None:
    if labels in ("random", "balanced"):
        return None
    try:
        numbers = [int(label) for label in labels.split(",")]
    except ValueError as error:
        raise ConfigError(f"--labels is {labels!r}: give random, balanced, or class numbers such as 207,360") from error
    outside = [number for number in numbers if not 0 <= number < num_classes]
    if outside:
        raise ConfigError(f"--labels has {outside[0]}: this model knows classes 0 to {num_classes - 1}")
    return numbers
