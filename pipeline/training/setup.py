"""What the store decides of a training run: VAE, encoders, classes, shapes, and the facts kept in checkpoints."""

from __future__ import annotations

import dataclasses

from ...config import TrainConfig
from ...errors import ConfigError, StoreError
from ...models.sit import SiT, sit_config
from ...models.sit.entangled import make_sit
from ...stores import AlignmentDataset, Store
from ...stores.layout import features_group, latents_group
from ..artifacts.checkpoints import StoreMetadata
from ..runtime.distributed import DistributedContext
from .objective import LEGACY_DROPOUT
from .terms.class_token import cls_dim


def resolve(config: TrainConfig, store: Store) -> TrainConfig:
    """Fill in what the store decides: VAE, encoders, classes, the run's name."""
    vae = config.vae or _only(store, "latents", "--vae")
    encoders = config.enc_type
    if not config.proj_coeff and not config.cls_coeff:
        encoders = ()
    elif not encoders:
        encoders = (_only(store, "features", "--enc-type"),)
    name = "-".join(
        [config.model.replace("/", "-").lower(), *(encoders or ("no-alignment",)), f"{config.proj_coeff:g}"]
    )
    return dataclasses.replace(
        config,
        vae=vae,
        enc_type=encoders,
        num_classes=config.num_classes or len(store.manifest.class_names),
        exp_name=config.exp_name or name.replace("/", "-"),
    )


def _only(store: Store, kind: str, option: str) -> str:
    names = [name.split("/", 1)[1] for name in store.group_names() if name.startswith(f"{kind}/")]
    if len(names) != 1:
        there = f"{store.location} has {', '.join(names)}" if names else f"{store.location} has no {kind}"
        raise ConfigError(f"{option} is not given and {there}: name one (or 'repa-pipe encode' it first)")
    return names[0]


def open_dataset(config: TrainConfig, store: Store, ranks: DistributedContext) -> AlignmentDataset:
    """The batches of a run; ConfigError when they cannot be divided as asked for."""
    dataset = AlignmentDataset(
        store,
        latents=str(config.vae),
        encoders=config.enc_type,
        batch_size=config.batch_size,
        seed=config.seed,
        rank=ranks.rank,
        world_size=ranks.world_size,
        window=config.shuffle_window,
        token_scales=config.spatial_norm is not None,  # what is normalized over the image needs tokens' lengths
        cls_tokens=config.cls_coeff > 0,
        alignment_steps=config.aligned_steps,
        flip=config.flip,
        direct=config.direct,
        process=config.reader_process,
    )
    share = config.batch_size // ranks.world_size
    if share % config.microbatches:
        raise ConfigError(f"--microbatches {config.microbatches} does not divide a rank's {share} samples of a step")
    return dataset


def build_model(config: TrainConfig, store: Store) -> SiT:
    """The model that the config names, in the shapes of the store; StoreError when the token grids differ."""
    latents = store.group(latents_group(str(config.vae))).shard_indexes["moments"].layout.spec
    channels, side, _ = latents.sample_shape
    encoders = {encoder: store.group(features_group(encoder)).attributes for encoder in config.enc_type}
    options = {} if config.encoder_depth is None else {"encoder_depth": config.encoder_depth}
    model = sit_config(
        config.model,
        input_size=side,
        in_channels=channels // 2,
        num_classes=int(config.num_classes or 0),
        class_dropout_prob=LEGACY_DROPOUT if config.legacy else config.cfg_prob,
        z_dims=tuple(attributes["width"] for attributes in encoders.values()) if config.proj_coeff else (),
        cls_dim=cls_dim(config, store) if config.cls_coeff else None,
        projector_dim=config.projector_embed_dims,
        qk_norm=config.qk_norm,
        projector=config.projector,
        **options,
    )
    grid = (side // model.patch_size) ** 2
    for encoder, attributes in encoders.items():
        if attributes["num_tokens"] != grid:
            raise StoreError(
                f"{config.model} has {grid} tokens, {encoder} has {attributes['num_tokens']} in {store.location}: "
                "choose a model with another patch size, or an encoder of that token grid"
            )
    return make_sit(model)


def store_metadata(config: TrainConfig, store: Store) -> StoreMetadata:
    """What a checkpoint keeps of the store."""
    latents = store.group(latents_group(str(config.vae)))
    groups = [latents.path, *(features_group(encoder) for encoder in config.enc_type)]
    return StoreMetadata(
        vae=latents.attributes["vae"],
        latents_scale=tuple(latents.attributes["scale"]),
        latents_bias=tuple(latents.attributes["bias"]),
        class_names=store.manifest.class_names,
        index_digest=store.manifest.index_digest,
        fingerprints={path: store.group(path).fingerprint for path in groups},
    )
