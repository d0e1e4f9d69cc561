"""What a model is guided away from, besides its own prediction without a label."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...config import SampleConfig
from ...diffusion.guidance import BothVelocities, with_unconditional, with_weak_model
from ...errors import ConfigError
from ...models.raev2.model import BASE
from ...models.srdit.model import SRDiT
from ..artifacts.checkpoints import TrainedModel, load_model, resolve_checkpoint, unrecorded


def weaker_velocities(
    config: SampleConfig, trained: TrainedModel, model: Any, device: torch.device
) -> BothVelocities | None:
    """Return the function of both velocities for other guidance than classifier-free guidance; None for that.

    Args:
        config: the settings.
        trained: the model, as it was loaded.
        model: the same model, on its device, maybe compiled.
        device: where the weaker model, if any, is put.

    Raises:
        ConfigError: the model has no base head or no routed middle blocks, or the weaker model generates other latents.
        CheckpointError: the checkpoint of the weaker model is missing or damaged.
    """
    if config.guidance == "internal":
        if BASE not in trained.model.taps:
            raise ConfigError("--guidance internal: the model has no base head, as those of RAEv2 have; use cfg")
        return _with_base_head(model)
    if config.guidance == "path_drop":
        if not isinstance(trained.model, SRDiT):
            raise ConfigError(
                "--guidance path_drop: the model has no blocks that can be left out, as SR-DiT has; use cfg"
            )
        without = partial(model, project=False, uncond=True)
        return with_unconditional(partial(model, project=False), without, trained.model.config.num_classes)
    if config.guidance_checkpoint is None:
        return None
    path = resolve_checkpoint(config.guidance_checkpoint)
    weak = load_model(path, config.ema, unrecorded(config))
    different = [
        f"{name}: {found}, not {expected}"
        for (name, expected), found in zip(_latents_of(trained).items(), _latents_of(weak).values(), strict=True)
        if found != expected
    ]
    if different:
        raise ConfigError(
            f"--guidance-checkpoint {path}: its model generates other latents than the guided one "
            f"({'; '.join(different)}): choose one that was trained on the same latents and classes"
        )
    return with_weak_model(partial(model, project=False), partial(weak.model.to(device), project=False))


def _latents_of(trained: TrainedModel) -> dict[str, Any]:
    """Return what two models must have in common."""
    store = trained.store
    return {
        "shape": list(trained.model.state_shape),
        "encoder": store.token_latents or store.vae,
        "scale": store.latents_scale,
        "bias": store.latents_bias,
        "statistics": store.statistics,
        "classes": trained.model.config.num_classes,
        "path": trained.config.path_type,
    }


def _with_base_head(model: Any) -> BothVelocities:
    def both(x_t: Tensor, t: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        velocity, _, tapped = model(x_t, t, labels, project=False, taps=(BASE,))
        return velocity, tapped[BASE]

    return both
