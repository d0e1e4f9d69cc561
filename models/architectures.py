"""The architectures that can be trained: their presets by name, and a model from a config or from a checkpoint.

Imports no torch until a model is built.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from ..converter import structure
from ..errors import CheckpointError
from .dit_dh.config import DIT_DH_PRESETS, DiTDHConfig
from .jit.config import JIT_PRESETS, JiTConfig
from .lightningdit.config import LIGHTNINGDIT_PRESETS, LightningDiTConfig
from .raev2.config import RAEV2_PRESETS, RAEv2Config
from .sit.config import SIT_PRESETS, SiTConfig
from .srdit.config import SRDIT_PRESETS, SRDiTConfig

if TYPE_CHECKING:
    from torch import Tensor

    from .diffusion_model import DiffusionModel

AnyConfig: TypeAlias = SiTConfig | DiTDHConfig | LightningDiTConfig | RAEv2Config | JiTConfig | SRDiTConfig

# The entry of a checkpoint that holds the config
_KINDS: dict[str, type[AnyConfig]] = {
    "sit": SiTConfig,
    "dit_dh": DiTDHConfig,
    "lightningdit": LightningDiTConfig,
    "raev2": RAEv2Config,
    "jit": JiTConfig,
    "srdit": SRDiTConfig,
}
KEYS = frozenset(_KINDS)


def model_names() -> list[str]:
    """Return the names of `--model`."""
    return [*SIT_PRESETS, *DIT_DH_PRESETS, *LIGHTNINGDIT_PRESETS, *RAEV2_PRESETS, *JIT_PRESETS, *SRDIT_PRESETS]


def preset_config(name: str, *, input_size: int, in_channels: int, z_dims: tuple[int, ...] = ()) -> AnyConfig:
    """Return the config of a preset for latents of this size; `z_dims` are the encoders that it is aligned with."""
    if name in SIT_PRESETS:
        return SIT_PRESETS[name](input_size=input_size, in_channels=in_channels, z_dims=z_dims)
    sizes: dict[str, Any] = {"input_size": input_size, "in_channels": in_channels}
    if name in DIT_DH_PRESETS:
        return DiTDHConfig(**sizes, **DIT_DH_PRESETS[name])
    if name in LIGHTNINGDIT_PRESETS:
        return LightningDiTConfig(**sizes, **LIGHTNINGDIT_PRESETS[name])
    if name in JIT_PRESETS:
        return JiTConfig(**sizes, z_dims=z_dims, **JIT_PRESETS[name])
    if name in SRDIT_PRESETS:
        widths = z_dims or (768,)  # the class token is that of the first encoder
        return SRDiTConfig(**sizes, **SRDIT_PRESETS[name], cls_dim=widths[0], z_dims=z_dims)
    return RAEv2Config(**sizes, **RAEV2_PRESETS[name])


def key_of(config: object) -> str:
    """Return the entry of a checkpoint that holds this config."""
    return next(key for key, kind in _KINDS.items() if isinstance(config, kind))


def read_model_config(values: Mapping[str, Any], where: str) -> AnyConfig:
    """Return the config in a checkpoint's contents; raise CheckpointError, naming `where`, unless there is one."""
    keys = [key for key in _KINDS if key in values]
    if len(keys) != 1:
        raise CheckpointError(
            f"{where}: expected the config of one model under {' or '.join(_KINDS)}, found {len(keys)}"
        )
    return structure(values[keys[0]], _KINDS[keys[0]], f"{where}: {keys[0]}", CheckpointError)


def make_model(config: AnyConfig) -> DiffusionModel:
    """Build a model with fresh weights."""
    if isinstance(config, SiTConfig):
        from .sit import make_sit

        return make_sit(config)
    if isinstance(config, DiTDHConfig):
        from .dit_dh.model import DiTDH

        return DiTDH(config)
    if isinstance(config, LightningDiTConfig):
        from .lightningdit.model import LightningDiT

        return LightningDiT(config)
    if isinstance(config, JiTConfig):
        from .jit.model import JiT

        return JiT(config)
    if isinstance(config, SRDiTConfig):
        from .srdit.model import SRDiT

        return SRDiT(config)
    from .raev2.model import RAEv2

    return RAEv2(config)


def count_blocks(names: Iterable[str]) -> int:
    """Return the number of blocks that tensors of these names belong to."""
    return len({match[1] for name in names if (match := re.match(r"blocks\.(\d+)\.", name))})


def require_fitting(config: AnyConfig, tensors: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError unless weights are those of a model of these sizes, before it takes any memory."""
    if isinstance(config, SiTConfig):
        from .sit import require_sizes

        require_sizes(config, tensors)
        return
    import torch

    blocks = count_blocks(tensors)
    if (config.depth if isinstance(config.depth, int) else sum(config.depth)) != blocks:
        raise CheckpointError(f"depth: {blocks} blocks in the weights, {config.depth} recorded")
    with torch.device("meta"):
        expected = make_model(config).state_dict()
    different = [name for name, value in expected.items() if name not in tensors or tensors[name].shape != value.shape]
    if different:
        raise CheckpointError(f"its weights are not those of the recorded model ({', '.join(different[:3])})")
