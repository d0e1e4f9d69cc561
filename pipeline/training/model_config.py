"""The config of the model of a run: a preset, for the shapes of the latents and tokens in the store."""

from __future__ import annotations

from typing import Any

from ...config import TrainConfig
from ...converter import shown
from ...errors import ConfigError, StoreError
from ...models.architectures import AnyConfig, model_names
from ...models.dit_dh.config import DIT_DH_PRESETS, DiTDHConfig
from ...models.jit.config import JIT_PRESETS, JiTConfig
from ...models.lightningdit.config import LIGHTNINGDIT_PRESETS, LightningDiTConfig
from ...models.raev2.config import RAEV2_PRESETS, RAEv2Config
from ...models.sit.config import SIT_PRESETS, SiTConfig, sit_config
from ...models.srdit.config import SRDIT_PRESETS, SRDiTConfig
from ...stores import Store
from ...stores.layout import features_group, latents_group
from ...stores.statistics import latents_shape

CLS_TOKEN = "cls_token"
LEGACY_DROPOUT = 0.1  # REPA's model drops labels with this probability in training, in addition to its trainer


def groups_of(config: TrainConfig) -> list[str]:
    """Return the groups that a run reads, that of the latents first."""
    return list(dict.fromkeys([group_of_latents(config), *map(features_group, aligned_encoders(config))]))


def aligned_encoders(config: TrainConfig) -> list[str]:
    """Return the encoders whose tokens a run is aligned with; last, that of --attn-coeff, if any."""
    return [*config.enc_type, *([config.attn_encoder] if config.attn_encoder else [])]


def group_of_latents(config: TrainConfig) -> str:
    """Return the group of the latents: a VAE's, or that of an encoder with `--token-latents`."""
    return features_group(config.token_latents) if config.token_latents else latents_group(str(config.vae))


def model_config(config: TrainConfig, store: Store) -> AnyConfig:
    """Return the config of the model for the shapes in the store.

    Raises:
        ConfigError: a setting of the model is invalid, or does not apply to it.
        StoreError: token grids differ.
    """
    if config.model in SIT_PRESETS:
        return _sit_config(config, store)
    if config.model in DIT_DH_PRESETS:
        _require_unset(config, "proj_coeff", "cls_coeff", "qk_norm", "legacy")
        return DiTDHConfig(**_sizes(config, store), **DIT_DH_PRESETS[config.model])
    if config.model in LIGHTNINGDIT_PRESETS:
        _require_unset(config, "proj_coeff", "cls_coeff", "legacy")
        sizes = LIGHTNINGDIT_PRESETS[config.model]
        return LightningDiTConfig(**_sizes(config, store), use_qknorm=config.qk_norm, **sizes)
    if config.model in RAEV2_PRESETS:
        return _raev2_config(config, store)
    if config.model in JIT_PRESETS:
        return _jit_config(config, store)
    if config.model in SRDIT_PRESETS:
        return _srdit_config(config, store)
    raise ConfigError(f"unknown model {shown(config.model)}; expected one of {', '.join(model_names())}")


def _sizes(config: TrainConfig, store: Store) -> dict[str, Any]:
    """Return what all models but SiT take from store and settings."""
    channels, side, _ = _latents_shape(config, store)
    return {
        "input_size": side,
        "in_channels": channels,
        "num_classes": int(config.num_classes or 0),
        "class_dropout_prob": config.cfg_prob,
    }


def _require_unset(config: TrainConfig, *names: str) -> None:
    """Raise ConfigError unless options for which the model lacks a part are off."""
    parts = {"proj_coeff": "projectors", "cls_coeff": "class token"}
    for name in names:
        problem = f"must be 0 for {config.model}, which has no {parts[name]}" if name in parts else None
        config.require(not getattr(config, name), name, problem or f"does not apply to {config.model}")


def _raev2_config(config: TrainConfig, store: Store) -> RAEv2Config:
    """Return the config of RAEv2's model, whose single projector is linear."""
    _require_unset(config, "cls_coeff", "qk_norm", "legacy")
    config.require(config.path_type == "linear", "path_type", f"must be linear for {config.model}")
    config.require(config.projector == "mlp", "projector", f"does not apply to {config.model}: its own is linear")
    projector: dict[str, Any] = {}
    if config.proj_coeff:
        config.require(len(config.enc_type) == 1, "enc_type", f"{config.model} is aligned with a single encoder")
        width = store.group(features_group(config.enc_type[0])).attributes["width"]
        projector = {"repa_layer_depth": 8 if config.encoder_depth is None else config.encoder_depth, "z_dim": width}
    model = RAEv2Config(**_sizes(config, store), **projector, **RAEV2_PRESETS[config.model])
    _require_grid(config, store, model.input_size // model.patch_size)
    return model


def _jit_config(config: TrainConfig, store: Store) -> JiTConfig:
    """Return the config of a JiT, for pixels or any other latents that its patches divide."""
    _require_unset(config, "cls_coeff", "qk_norm", "legacy")
    config.require(config.path_type == "linear", "path_type", f"must be linear for {config.model}")
    options: dict[str, Any] = dict(JIT_PRESETS[config.model])
    if config.encoder_depth is not None:
        options["encoder_depth"] = config.encoder_depth
    model = JiTConfig(
        **_sizes(config, store),
        **options,
        z_dims=_z_dims(config, store),
        projector=config.projector,
        projector_dim=config.projector_embed_dims,
        projector_kernel_size=config.projector_kernel_size,
    )
    _require_grid(config, store, model.input_size // model.patch_size)
    return model


def _srdit_config(config: TrainConfig, store: Store) -> SRDiTConfig:
    """Return the config of SR-DiT, which always denoises a class token."""
    _require_unset(config, "legacy")
    config.require(config.cls_coeff > 0, "cls_coeff", f"must be above 0 for {config.model}, published: 0.03")
    config.require(
        config.encoder_depth is None, "encoder_depth", f"does not apply to {config.model}, aligned before its routing"
    )
    config.require(
        not config.fsdp, "fsdp", f"cannot be combined with {config.model}, which has parameters without an axis"
    )
    model = SRDiTConfig(
        **_sizes(config, store),
        **SRDIT_PRESETS[config.model],
        cls_dim=_cls_dim(config, store),
        z_dims=_z_dims(config, store),
        projector_dim=config.projector_embed_dims,
        qk_norm=config.qk_norm,
    )
    _require_grid(config, store, model.input_size // model.patch_size)
    return model


def _sit_config(config: TrainConfig, store: Store) -> SiTConfig:
    channels, side, _ = _latents_shape(config, store)
    options = {} if config.encoder_depth is None else {"encoder_depth": config.encoder_depth}
    model = sit_config(
        config.model,
        input_size=side,
        in_channels=channels,
        num_classes=int(config.num_classes or 0),
        class_dropout_prob=LEGACY_DROPOUT if config.legacy else config.cfg_prob,
        z_dims=_z_dims(config, store),
        cls_dim=_cls_dim(config, store) if config.cls_coeff else None,
        projector_dim=config.projector_embed_dims,
        qk_norm=config.qk_norm,
        projector=config.projector,
        projector_kernel_size=config.projector_kernel_size,
        **options,
    )
    _require_grid(config, store, side // model.patch_size)
    return model


def _require_grid(config: TrainConfig, store: Store, side: int) -> None:
    """Raise StoreError unless every encoder's tokens lie on the grid of the model's."""
    for encoder in aligned_encoders(config):
        found = store.group(features_group(encoder)).attributes["num_tokens"]
        if found != side**2:
            raise StoreError(
                f"{config.model} has {side**2} tokens, {encoder} has {found} in {store.location}: choose a model with "
                "another patch size, or an encoder with that token grid"
            )


def _latents_shape(config: TrainConfig, store: Store) -> tuple[int, ...]:
    """Return the shape `(C, h, w)` of the latents."""
    if config.token_latents:
        return latents_shape(store, group_of_latents(config))
    group = store.group(group_of_latents(config))
    _, *sides = group.shard_indexes[group.latents_array].layout.spec.sample_shape
    if sides[0] != sides[1]:
        raise StoreError(f"{store.location}: latents of {group.path} are {sides[0]} x {sides[1]}: expected a square")
    return (group.latents_channels, *sides)


def _z_dims(config: TrainConfig, store: Store) -> tuple[int, ...]:
    """Return the width of each projector's tokens; no projectors without `--proj-coeff`."""
    if not config.proj_coeff:
        return ()
    return tuple(store.group(features_group(encoder)).attributes["width"] for encoder in config.enc_type)


def _cls_dim(config: TrainConfig, store: Store) -> int:
    """Return the width of the first encoder's class token; raise StoreError if an encoder has none."""
    for encoder in config.enc_type:
        group = store.group(features_group(encoder))
        if CLS_TOKEN not in group.shard_indexes:
            raise StoreError(
                f"{encoder} has no class token in {store.location}, which --cls-coeff requires: choose an encoder with "
                "one (docs/encoders.md), or --cls-coeff 0"
            )
    return store.group(features_group(config.enc_type[0])).shard_indexes[CLS_TOKEN].layout.spec.sample_shape[0]
