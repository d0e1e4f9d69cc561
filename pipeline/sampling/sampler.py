"""Generation of any block of images from a model; an image does not depend on the block it is generated in.

Image i depends on (seed, i), the model and the settings alone: its label, its initial noise and the noise of its SDE
steps come from generators for this image.
"""

from __future__ import annotations

import logging
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
from ...models.class_token import ClassTokenModel
from ...models.diffusion_model import DiffusionModel, ModelConfig
from ..artifacts.checkpoints import TrainedModel
from ..artifacts.images import Block
from ..runtime.console import NOTICE
from ..runtime.device import DTYPES
from ..runtime.seeds import STREAMS_VERSION, RandomStreams, image_label
from .decoder import make_decoder
from .guidance import weaker_velocities
from .times import sampling_times

logger = logging.getLogger(__name__)


class Sampler:
    """The model, the decoder and the labels of one set of images.

    Raises:
        ConfigError: `--labels` has a class that the model does not have, or the model lacks what guidance needs: a null
            label, or a class token for `--cls-cfg-scale`; or the decoder belongs to other latents.
        WeightsError: the VAE or decoder is unavailable.
    """

    def __init__(
        self, config: SampleConfig, trained: TrainedModel, device: torch.device, streams_version: int = STREAMS_VERSION
    ) -> None:
        self._config, self._device = config, device
        self._streams = RandomStreams(config.global_seed, streams_version)
        self._sit = trained.model.config
        self._listed = _listed_labels(config, self._sit)
        self._plain = trained.model.to(device)
        self._model: Any = torch.compile(self._plain) if config.compile else self._plain
        self._both = weaker_velocities(config, trained, self._model, device)
        self._interpolant = Interpolant(trained.config.path_type)
        self._times = sampling_times(config, trained)
        self._decode = make_decoder(config, trained, device)
        self._scale_of = _guidance_scales(config, self._plain)

    def all_labels(self) -> npt.NDArray[np.int64]:
        """Return the labels of all images, `[num_fid_samples]`."""
        return np.array([self._label(i) for i in range(self._config.num_fid_samples)], dtype=np.int64)

    def latents(self, indices: range) -> Tensor:
        """Generate the scaled latents of the images `indices`, float32 `[B, C, h, w]` on the device."""
        config = self._config
        generators = [self._streams.of_image(i) for i in indices]
        shape = self._plain.state_shape
        noise = _moved([torch.randn(shape, generator=generator) for generator in generators], self._device)
        noise = noise * self._plain.noise_scale
        labels = torch.tensor([self._label(i) for i in indices], device=self._device)
        velocity = guided(
            partial(self._model, project=False),
            labels,
            self._sit.num_classes,
            config.cfg_scale,
            config.guidance_low,
            config.guidance_high,
            self._scale_of,
            self._both,
            each_evaluation=self._plain.guides_each_evaluation,
        )
        with torch.autocast(self._device.type, DTYPES[config.precision], config.precision != "fp32"):
            if config.mode == "ode":
                state = euler(velocity, noise, config.num_steps, config.heun, self._times)
            else:
                draws = _step_noise(generators)
                state = euler_maruyama(velocity, noise, config.num_steps, draws, self._interpolant, self._times)
        return self._plain.latents_of(state).float()

    def decode(self, latents: Tensor) -> Block:
        """Decode latents into images, uint8 `[B, H, W, 3]`."""
        return self._decode(latents).permute(0, 2, 3, 1).contiguous().cpu().numpy()

    def _label(self, index: int) -> int:
        classes = self._sit.num_classes
        if self._listed:
            return self._listed[index % len(self._listed)]
        if self._config.labels == "balanced":
            return index % classes
        return image_label(self._config.global_seed, index, classes)


def _guidance_scales(config: SampleConfig, model: DiffusionModel) -> Tensor | None:
    """Return the guidance scale of every element of the model's state; None if it is the same for all."""
    if config.guidance_channels is not None:
        return _channel_scales(config, model)
    if config.cls_cfg_scale is None:
        return None
    if not isinstance(model, ClassTokenModel):
        raise ConfigError(
            f"--cls-cfg-scale is {config.cls_cfg_scale:g}, but the model has no class token (REG, SR-DiT): remove it"
        )
    if config.cfg_scale == 1:
        logger.warning("--cls-cfg-scale has no effect, because --cfg-scale 1 disables guidance", extra=NOTICE)
    return model.guidance_scales(config.cfg_scale, config.cls_cfg_scale)


def _channel_scales(config: SampleConfig, model: DiffusionModel) -> Tensor:
    """Return the guidance scale of each channel, `[C, 1, 1]`: 1 for those that are not guided."""
    channels, guided_channels = model.config.in_channels, int(config.guidance_channels or 0)
    if isinstance(model, ClassTokenModel) or guided_channels > channels:
        raise ConfigError(
            f"--guidance-channels is {guided_channels}: expected at most the {channels} channels of the latents, and a "
            "model without a class token"
        )
    scales = torch.ones(channels, 1, 1, device=next(model.parameters()).device)
    scales[:guided_channels] = config.cfg_scale
    return scales


def _step_noise(generators: list[torch.Generator]) -> Noise:
    def noise(step: int, like: Tensor) -> Tensor:
        draws = [torch.randn(like.shape[1:], generator=generator, dtype=like.dtype) for generator in generators]
        return _moved(draws, like.device)

    return noise


def _moved(draws: list[Tensor], device: torch.device) -> Tensor:
    """Stack draws of the CPU on the device; a GPU copies them from pinned memory while the host continues."""
    stacked = torch.stack(draws)
    return stacked.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else stacked.to(device)


def _listed_labels(config: SampleConfig, sit: ModelConfig) -> tuple[int, ...]:
    """Return the labels in `--labels`; raise ConfigError for labels, listed or of guidance, that the model lacks."""
    outside = [number for number in config.listed_labels if number >= sit.num_classes]
    if outside:
        raise ConfigError(f"--labels contains {outside[0]}: this model has classes 0 to {sit.num_classes - 1}")
    by_label = config.guidance != "internal" and config.guidance_checkpoint is None
    if config.cfg_scale > 1 and by_label and not sit.class_dropout_prob:
        raise ConfigError(
            f"--cfg-scale is {config.cfg_scale:g}: this model was trained with --cfg-prob 0, so it has no velocity "
            "without a label to guide with; use --cfg-scale 1"
        )
    return config.listed_labels
