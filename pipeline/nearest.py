"""`repa-pipe nearest`: the training images that are nearest to generated ones, to find copies of training images.

A distance alone says little: how near is near depends on the encoder and the data set. The baseline is the distance of
training images to their nearest other training images. Of generated images that are no copies, about as few as of
training images are nearer than the 1 % quantile of that baseline; a model that memorizes generates more of them.
The search is exact, over all samples of the store, whose tokens are read once.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..config import EvaluateConfig, NearestConfig
from ..config.base import weights_by_name
from ..config.paths import same_settings
from ..converter import read_record
from ..errors import ConfigError
from ..models.encoders.registry import check_encoder
from ..stores import Store, open_store
from ..stores.files import write_json
from ..stores.layout import features_group
from .artifacts.images import Images, open_images
from .artifacts.metric_files import resolve_samples
from .runtime.progress import progress
from .runtime.seeds import shuffled
from .runtime.tables import text_table

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

NEIGHBORS = 3  # per image
LISTED = 100  # of the nearest generated images, in the JSON file
BLOCK = 1024  # samples that are read at a time
THRESHOLD = 0.01  # quantile of the baseline
QUANTILES = {"minimum": 0.0, "1 %": 0.01, "10 %": 0.1, "median": 0.5, "maximum": 1.0}
SAMPLES, BASELINE = "generated to training", "training to training"


@dataclass(frozen=True, slots=True)
class NearestRecord:
    """The contents of `nearest.json`."""

    fraction: float  # of generated images that are nearer than the threshold
    threshold: float  # 1 % quantile of the baseline
    distances: dict[str, dict[str, float]]  # quantiles and mean, of `SAMPLES` and `BASELINE`
    num_samples: int
    num_train: int
    num_baseline: int
    pooling: str
    closest: list[dict[str, Any]]  # generated images by distance, each with its neighbors
    notes: list[str]
    config: dict[str, Any]
    settings: dict[str, Any]


@dataclass(frozen=True, slots=True)
class NearestResult:
    """The distances, and where they were written."""

    record: NearestRecord
    json: str
    page: str

    @property
    def table(self) -> str:
        """Quantiles of the distances, and the fraction that is nearer than the threshold."""
        found = self.record
        names = list(found.distances[SAMPLES])
        rows = [[name, *(f"{values[each]:.4f}" for each in names)] for name, values in found.distances.items()]
        lines = [text_table(["cosine distance to the nearest", *names], rows), *summary(found), *found.notes]
        return "\n".join(lines)


def summary(record: NearestRecord) -> list[str]:
    """Return what the distances mean, in two sentences."""
    return [
        f"{record.fraction:.2%} of {record.num_samples:,} generated images are nearer to a training image than "
        f"{record.threshold:.4f}, the {THRESHOLD:.0%} quantile of the distances between training images.",
        f"Features: {record.pooling}; {record.num_train:,} training images were searched, {record.num_baseline:,} of "
        "them are the baseline.",
    ]


def run(config: NearestConfig) -> NearestResult:
    """Search the nearest training images; write distances as JSON and the closest images as HTML.

    Raises:
        ConfigError: the images have another size than those of the store, or the encoder is not specified.
        StoreError, SourceError, WeightsError: the store, the given source or the encoder is unusable.
    """
    config = replace(
        config, samples=resolve_samples(EvaluateConfig(samples=config.samples, reference=config.store)).samples
    )
    with open_store(config.store) as store:
        config = replace(config, encoder=config.encoder or _only_encoder(store))
        check_encoder(str(config.encoder), _weights(config))
        rows = store.valid_indices([features_group(str(config.encoder))])
        images = open_images(config.samples, config.batch_size)
        if images.side != store.manifest.resolution:
            raise ConfigError(
                f"{config.samples} has images of {images.side} pixels, {config.store} of {store.manifest.resolution}: "
                "expected images of the model that was trained from this store"
            )
        settings = _settings(config, store, images)
        page = Path(config.out).with_suffix(".html")
        if (finished := _finished(config, settings)) is not None and page.exists():
            logger.info("%s already exists with the same settings; skipping", config.out)
            return NearestResult(finished, config.out, str(page))
        record = _record(config, store, settings, _search(config, store, images, rows))
        notes = _write_page(config, store, page, record)
    record = replace(record, notes=[*record.notes, *notes])
    values = {name: getattr(record, name) for name in NearestRecord.__dataclass_fields__}
    write_json(Path(config.out), values)  # last: then both files are complete
    return NearestResult(record, config.out, str(page))


def _only_encoder(store: Store) -> str:
    if len(store.encoders) != 1:
        found = ", ".join(store.encoders) or "none"
        raise ConfigError(f"{store.location} has {len(store.encoders)} encoders ({found}): pass --encoder with one")
    return store.encoders[0]


def _settings(config: NearestConfig, store: Store, images: Images) -> dict[str, Any]:
    """Return everything that the distances depend on."""
    fingerprint = store.group(features_group(str(config.encoder))).fingerprint
    digests = {"samples": images.content(), "images": store.manifest.index_digest, "fingerprint": fingerprint}
    return config.result_settings() | {"store": config.store, "content": digests}


def _finished(config: NearestConfig, settings: dict[str, Any]) -> NearestRecord | None:
    """Return the record that was written with the same settings, if any."""
    if not Path(config.out).exists():
        return None
    found = read_record(Path(config.out), NearestRecord, "delete it, or choose another --out")
    return found if same_settings(found.settings, settings) else None


@dataclass(frozen=True, slots=True)
class _Found:
    """Neighbors of the generated images, then of the baseline, the nearest first."""

    distances: npt.NDArray[np.float32]  # [num_samples + num_baseline, NEIGHBORS]
    neighbors: npt.NDArray[np.int64]  # samples of the store; -1 where there is none
    num_samples: int
    num_train: int
    pooling: str


def _search(config: NearestConfig, store: Store, images: Images, rows: npt.NDArray[np.int64]) -> _Found:
    """Compare generated images, and the baseline, with all training images."""
    import torch

    from ..metrics.nearest_neighbors import NearestNeighbors
    from .evaluation.pooled_features import PooledFeatures
    from .runtime.device import choose_device

    features = PooledFeatures(store, str(config.encoder), _weights(config), choose_device(config.device))
    baseline = np.sort(shuffled(rows, config.seed)[: config.num_baseline])
    if len(baseline) < 2:
        raise ConfigError(f"{config.store} has 1 image: a baseline needs at least 2")
    queries: list[Tensor] = []
    with progress(f"{config.encoder}: samples", images.count, "images") as bar:
        for block in images.blocks:
            queries.append(features.of_images(block))
            bar.update(len(block))
    queries += [features.of_samples(baseline[start : start + BLOCK]) for start in range(0, len(baseline), BLOCK)]
    own = torch.cat([torch.full((images.count,), -1), torch.from_numpy(baseline)])
    search = NearestNeighbors(torch.cat(queries), NEIGHBORS, own)
    with progress(f"{config.encoder}: training images", len(rows), "images") as bar:
        for start in range(0, len(rows), BLOCK):
            part = rows[start : start + BLOCK]
            search.add(torch.from_numpy(part), features.of_samples(part))
            bar.update(len(part))
    distances, neighbors = search.distances.cpu().numpy(), search.indices.cpu().numpy()
    pooling = f"{'class token' if features.has_cls_token else 'mean of the patch tokens'} of {config.encoder}"
    return _Found(distances, neighbors, images.count, len(rows), pooling)


def _weights(config: NearestConfig) -> str | None:
    encoder = str(config.encoder)
    return weights_by_name(config.encoder_weights, (encoder,)).get(encoder)


def _record(config: NearestConfig, store: Store, settings: dict[str, Any], found: _Found) -> NearestRecord:
    nearest = found.distances[:, 0].astype(np.float64)
    samples, baseline = nearest[: found.num_samples], nearest[found.num_samples :]
    threshold = float(np.quantile(baseline, THRESHOLD))
    notes = []
    if len(baseline) * THRESHOLD < 1:
        notes.append(f"{len(baseline):,} training images as baseline: expected at least 100 for a quantile of 1 %.")
    order = samples.argsort(kind="stable")[:LISTED]
    return NearestRecord(
        fraction=float((samples < threshold).mean()),
        threshold=threshold,
        distances={SAMPLES: _quantiles(samples), BASELINE: _quantiles(baseline)},
        num_samples=found.num_samples,
        num_train=found.num_train,
        num_baseline=len(baseline),
        pooling=found.pooling,
        closest=[_closest(store, int(each), found.distances[each], found.neighbors[each]) for each in order],
        notes=notes,
        config=config.as_json(),
        settings=settings,
    )


def _quantiles(distances: npt.NDArray[np.float64]) -> dict[str, float]:
    found = {name: float(np.quantile(distances, level)) for name, level in QUANTILES.items()}
    return found | {"mean": float(distances.mean())}


def _closest(
    store: Store, number: int, distances: npt.NDArray[np.float32], neighbors: npt.NDArray[np.int64]
) -> dict[str, Any]:
    """Return a generated image with its neighbors, as JSON values."""
    rows = neighbors[neighbors >= 0]
    names, keys = store.manifest.class_names, store.samples.take(rows).column("key").to_pylist()
    found = zip(rows.tolist(), keys, store.labels_at(rows).tolist(), distances.tolist(), strict=False)
    return {
        "sample": number,
        "neighbors": [
            {"index": row, "key": key, "class": names[label] if 0 <= label < len(names) else "", "distance": distance}
            for row, key, label, distance in found
        ],
    }


def _write_page(config: NearestConfig, store: Store, page: Path, record: NearestRecord) -> list[str]:
    """Write the closest images next to their neighbors; return notes about what they show."""
    from .reporting.neighbors import write_neighbors

    return write_neighbors(page, config, store, record.closest, [*summary(record), *record.notes])
