"""Settings of a training run that the store determines: VAE, encoders, classes, shapes, metadata for checkpoints.

Settings are checked without torch, which only the dataset and the model import.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...config import TrainConfig
from ...errors import ConfigError, RepaPipeError
from ...models.architectures import make_model
from ...models.encoders.registry import check_encoder
from ...models.encoders.token_choice import is_block_input
from ...models.weight_files import require_weights_file
from ...stores import Store
from ...stores.hub import is_hub
from ...stores.order import OrderName, default_order, held_out_samples
from ...stores.row_set import RowSet
from ...stores.selection import read_indices
from ...stores.store import Selection
from ...stores.trainable import trainable_rows
from ..artifacts.checkpoints import StoreMetadata
from ..artifacts.run_folder import RunFolder
from ..runtime.distributed import DistributedContext
from .evaluation import require_evaluation
from .model_config import aligned_encoders, group_of_latents, groups_of, model_config

if TYPE_CHECKING:
    from ...models.diffusion_model import DiffusionModel
    from ...stores import AlignmentDataset


def resolve(config: TrainConfig, store: Store) -> TrainConfig:
    """Return the config with VAE, encoders, number of classes, name and end of the learning rate schedule filled in.

    Raises:
        ConfigError: the store does not determine the VAE or the encoder, because it holds none or several.
    """
    vae = None
    if not config.token_latents:
        vae = store.vae_name(config.vae) if config.vae else _only(store, "latents", store.vaes, "--vae")
    encoders = config.enc_type
    if not config.proj_coeff and not config.cls_coeff:
        encoders = ()
    elif not encoders:
        usual = tuple(name for name in store.encoders if not is_block_input(name))
        encoders = (_only(store, "features", usual, "--enc-type"),)
    attention = config.attn_encoder
    if config.attn_coeff and not attention:
        inputs = tuple(name for name in store.encoders if is_block_input(name))
        attention = _only(store, "features with norm=none", inputs, "--attn-encoder")
    name = "-".join(
        [config.model.replace("/", "-").lower(), *(encoders or ("no-alignment",)), f"{config.proj_coeff:g}"]
    )
    return dataclasses.replace(
        config,
        vae=vae,
        enc_type=encoders,
        attn_encoder=attention,
        num_classes=config.num_classes or len(store.manifest.class_names),
        exp_name=config.exp_name or name.replace("/", "-"),
        lr_decay_steps=None if config.lr_schedule == "constant" else config.lr_decay_steps or config.max_train_steps,
    )


def _only(store: Store, kind: str, names: tuple[str, ...], option: str) -> str:
    if len(names) != 1:
        found = f"{store.location} has {', '.join(names)}" if names else f"{store.location} has no {kind}"
        raise ConfigError(f"{option} is not given and {found}: specify one (or add it with 'repa-pipe encode')")
    return names[0]


def training_rows(config: TrainConfig, store: Store, order: OrderName | None = None) -> RowSet:
    """Return the samples that the run trains on: the selected ones without those held out.

    Quarantined samples may be among them; the dataset skips those.

    Args:
        config: the settings, resolved.
        store: the store.
        order: the order with which the run began. None: that of a new run.

    Raises:
        ConfigError: a class, the file or a sample in it does not exist, or less than a batch is left for training or
            for validation.
    """
    selected = _selected_rows(config, store)
    if not config.val_fraction:
        return selected
    held_out = held_out_rows(config, store, order)
    for purpose, count in (("validation", len(held_out)), ("training", len(selected) - len(held_out))):
        config.require(
            count >= config.batch_size,
            "val_fraction",
            f"it leaves {count} of {len(selected)} samples for {purpose}, expected at least one batch "
            f"({config.batch_size}): change it, or lower --batch-size",
        )
    return selected.without(np.asarray(held_out))


def held_out_rows(config: TrainConfig, store: Store, order: OrderName | None = None) -> RowSet:
    """Return the selected samples that `--val-fraction` holds out from training."""
    drawn = held_out_samples(len(store), config.seed, config.val_fraction, order or default_order(len(store)))
    return RowSet.listing(len(store), drawn[_selected_rows(config, store).contains(drawn)])


def _selected_rows(config: TrainConfig, store: Store) -> RowSet:
    """Return the samples of --classes and of --indices."""
    flags = [f"--classes {each}" for each in config.classes] + [f"--indices {config.indices}"] * bool(config.indices)
    if not flags:
        return RowSet.all_but(len(store), np.empty(0, np.int64))
    try:
        listed = read_indices(Path(config.indices)) if config.indices else None
        found = store.select(config.classes or None, listed).rows
    except RepaPipeError as error:
        raise ConfigError(f"{' '.join(flags)}: {error}") from error
    if not len(found):
        raise ConfigError(f"{' '.join(flags)}: no sample of {store.location} is left")
    return found


def require_trainable(config: TrainConfig, store: Store, run_folder: RunFolder, ranks: DistributedContext) -> None:
    """Raise what can be found before torch is imported: the dataset, the model or the initial weights cannot work.

    Args:
        config: the settings, resolved.
        store: the store.
        run_folder: the run.
        ranks: the number of ranks.

    Raises:
        ConfigError: the batch cannot be divided, or a setting of the model is invalid.
        StoreError: a group is missing or incomplete, or its shapes do not fit the model.
        WeightsError: there is no file at `--init-from`.
    """
    groups = groups_of(config)
    chosen = Selection(store, training_rows(config, store))
    trainable_rows(chosen, groups, batch_size=config.batch_size, world_size=ranks.world_size, flip=config.flip)
    per_rank = config.batch_size // ranks.world_size
    if per_rank % config.microbatches:
        raise ConfigError(
            f"--microbatches {config.microbatches} does not divide the {per_rank} samples per rank and step"
        )
    _require_classes(config, store)
    model_config(config, store)
    if config.attn_encoder:
        config.require(is_block_input(config.attn_encoder), "attn_encoder", "expected NAME@block=N+norm=none")
        if not config.uses_ray:  # there, files need to exist only on the nodes
            check_encoder(config.attn_encoder, config.attn_weights())
    require_evaluation(config)
    if config.init_from and not is_hub(config.init_from) and not run_folder.checkpoints():
        require_weights_file(Path(config.init_from))


def _require_classes(config: TrainConfig, store: Store) -> None:
    """Raise ConfigError if a sample has a label that the model does not know: it would be the null label, or none."""
    highest = max(int(store.labels_at(part).max()) for part in _selected_rows(config, store).parts())
    config.require(
        highest < int(config.num_classes or 0),
        "num_classes",
        f"the largest label in {store.location} is {highest}, so at least {highest + 1} classes are needed",
    )


def open_dataset(
    config: TrainConfig, store: Store, ranks: DistributedContext, order: OrderName | None = None
) -> AlignmentDataset:
    """Open the batches of a run, in the order with which it began; None: that of a new run."""
    from ...stores import AlignmentDataset

    return AlignmentDataset(
        Selection(store, training_rows(config, store, order)),
        order=order,
        window=config.shuffle_window,
        alignment_steps=config.aligned_steps,
        flip=config.flip,
        process=config.reader_process,
        **_reading(config, ranks),
    )


def open_held_out(
    config: TrainConfig, store: Store, ranks: DistributedContext, order: OrderName | None = None
) -> AlignmentDataset:
    """Open the batches of the samples that are held out; see `open_dataset`."""
    from ...stores import AlignmentDataset

    held_out = Selection(store, held_out_rows(config, store, order))
    return AlignmentDataset(held_out, order=order, **_reading(config, ranks))


def _reading(config: TrainConfig, ranks: DistributedContext) -> dict[str, Any]:
    """Return the arguments that the datasets of training and validation have in common."""
    return {
        "latents": config.vae,
        "token_latents": config.token_latents,
        "encoders": aligned_encoders(config),
        "batch_size": config.batch_size,
        "seed": config.seed,
        "rank": ranks.rank,
        "world_size": ranks.world_size,
        # the cosine does not need them, normalization and squared errors do
        "token_scales": config.spatial_norm is not None or config.alignment_loss == "mse" or config.attn_coeff > 0,
        "cls_tokens": config.cls_coeff > 0 or ("aligned" if config.attn_coeff else False),
        "direct": config.direct,
    }


def build_model(config: TrainConfig, store: Store) -> DiffusionModel:
    """Build the model with random weights, for the shapes and labels in the store, with the heads of its terms."""
    from .terms.registry import attach_heads

    _require_classes(config, store)
    model = make_model(model_config(config, store))
    attach_heads(config, model)
    return model


def store_metadata(config: TrainConfig, store: Store, order: OrderName | None = None) -> StoreMetadata:
    """Return the metadata of the store that checkpoints record, with the order with which the run began."""
    from ..spaces.tokens import statistics_digest

    latents, groups, encoder = store.group(group_of_latents(config)), groups_of(config), config.token_latents
    return StoreMetadata(
        vae="" if encoder else latents.attributes["vae"],
        latents_scale=() if encoder else tuple(latents.attributes["scale"]),
        latents_bias=() if encoder else tuple(latents.attributes["bias"]),
        token_latents=encoder,
        statistics=statistics_digest(store, encoder) if encoder else None,
        class_names=store.manifest.class_names,
        index_digest=store.manifest.index_digest,
        fingerprints={path: store.group(path).fingerprint for path in groups},
        samples=training_rows(config, store, order).digest if config.classes or config.indices else None,
        order=order or default_order(len(store)),
    )
