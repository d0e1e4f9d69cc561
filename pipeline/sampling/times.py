"""The times of a sampler, as the program of each model steps them."""

from __future__ import annotations

from torch import Tensor

from ...config import SampleConfig
from ...diffusion.samplers import sde_times
from ...diffusion.times import falling_grid, shifted
from ...errors import ConfigError
from ...models.jit.config import JiTConfig
from ...models.lightningdit.config import LightningDiTConfig
from ...models.raev2.config import RAEv2Config
from ...models.srdit.config import SRDiTConfig
from ..artifacts.checkpoints import TrainedModel

RAE_LAST_TIME = 0.001  # before the shift


def sampling_times(config: SampleConfig, trained: TrainedModel) -> Tensor | None:
    """Return the falling times of the steps; None for `--num-steps` equal steps from 1 to 0 (REPA).

    - SR-DiT takes `--num-steps` shifted steps of either sampler, down to 0.
    - RAEv2 and JiT take `--num-steps` steps, shifted if at all, down to 0.
    - LightningDiT takes one step less, down to 0.
    - Other models with a time shift take one step less, down to RAE's last time.

    Raises:
        ConfigError: a sampler of other times was chosen, or there is not a single step.
    """
    shift = trained.config.time_shift if config.time_shift is None else config.time_shift
    model = trained.model.config
    if isinstance(model, SRDiTConfig):
        return shifted(sde_times(config.num_steps), shift) if config.mode == "sde" else _steps_to_zero(config, shift)
    if isinstance(model, RAEv2Config | JiTConfig):
        _require_ode(config, "a model of RAEv2" if isinstance(model, RAEv2Config) else "a JiT", at_least=1)
        return _steps_to_zero(config, shift)
    is_lightning = isinstance(model, LightningDiTConfig)
    if shift == 1 and not is_lightning:
        return None
    _require_ode(config, "a LightningDiT" if is_lightning else f"a time shift of {shift:g}", at_least=2)
    return falling_grid(config.num_steps, 0.0 if is_lightning else RAE_LAST_TIME, shift)


def _steps_to_zero(config: SampleConfig, shift: float) -> Tensor:
    return falling_grid(config.num_steps + 1, 0.0, shift)


def _require_ode(config: SampleConfig, reason: str, at_least: int) -> None:
    if config.mode != "ode" or config.num_steps < at_least:
        raise ConfigError(
            f"{reason} requires --mode ode and --num-steps of at least {at_least}, found --mode {config.mode} "
            f"--num-steps {config.num_steps}"
        )
