"""Stores of random numbers with the real shapes: the values do not affect speed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import timm
import torch
from safetensors.torch import save_file

from repa_pipe.models.encoders import describe_encoder
from repa_pipe.models.encoders.registry import find_entry
from repa_pipe.stores import Store
from repa_pipe.stores.codecs import make_codec
from repa_pipe.stores.layout import ArraySpec, GroupSpec, features_group, num_shards
from repa_pipe.stores.manifest import Manifest
from repa_pipe.stores.writer import ShardWriter, create_group, create_store

LATENTS_GROUP = GroupSpec(
    path="latents/sd",
    arrays=(ArraySpec(name="moments", sample_shape=(8, 32, 32), dtype="float32"),),
    attributes={"vae": "sd", "fingerprint": {}, "scale": [0.18215] * 4, "bias": [0.0] * 4},
)


def features_template(encoder: str, codec_name: str = "float16") -> GroupSpec:
    """Return the group of an encoder at 256 px."""
    info = describe_encoder(encoder, 256)
    codec = make_codec(codec_name, info.num_tokens, info.width)
    attributes = {"encoder": encoder, "num_tokens": info.num_tokens, "width": info.width, "codec": codec.attributes}
    return GroupSpec(path=features_group(encoder), arrays=codec.arrays, attributes=attributes | {"fingerprint": {}})


def new_store(path: Path, count: int, shard_size: int = 512) -> Manifest:
    """Create a store without groups. The label of sample i is i modulo 1,000."""
    manifest = Manifest(
        num_samples=count,
        resolution=256,
        crop="none",
        shard_size=shard_size,
        index_digest="",
        class_names=tuple(map(str, range(1000))),
        source={"kind": "folder", "path": "none"},
    )
    keys = [str(i) for i in range(count)]
    labels = pa.array([i % 1000 for i in range(count)], pa.int32())
    create_store(path, manifest, pa.table({"key": keys, "label": labels, "num_bytes": [0] * count, "where": keys}))
    return manifest


def synthetic_store(path: Path, encoder: str, count: int, codec_name: str = "float16") -> None:
    """Create a store of random numbers with the shapes of SD-VAE and of the encoder at 256 px."""
    manifest, rng = new_store(path, count), np.random.default_rng(0)
    for spec in (LATENTS_GROUP, features_template(encoder, codec_name)):
        fill_group(path, manifest, spec, rng)


def random_weights(encoder: str, folder: Path) -> Path:
    """Write a file of random weights of an encoder's architecture; return its path."""
    entry = find_entry(encoder.partition("@")[0])
    torch.manual_seed(0)
    path = folder / "weights.safetensors"
    save_file(timm.create_model(entry.architecture, num_classes=0).state_dict(), path)
    return path


def sample_bytes(store: Store) -> int:
    """Return the bytes of a sample in all groups of a store."""
    return sum(store.group(name).spec.sample_bytes for name in store.group_names())


def fill_group(path: Path, manifest: Manifest, spec: GroupSpec, rng: np.random.Generator) -> None:
    """Create a group and write all its shards."""
    create_group(path, manifest, spec)
    for shard in range(num_shards(manifest.num_samples, manifest.shard_size)):
        with ShardWriter(path, manifest, spec, shard) as writer:
            for start in range(0, len(writer.samples), 128):
                size = min(128, len(writer.samples) - start)
                writer.append({array.name: _random(rng, size, array) for array in spec.arrays})
            writer.commit(np.zeros(len(writer.samples), np.uint32), ())


def _random(rng: np.random.Generator, count: int, array: ArraySpec) -> np.ndarray[Any, Any]:
    shape = (count, *array.sample_shape)
    if array.dtype in ("int8", "uint8"):
        return rng.integers(0, 127, shape, np.uint8).view(array.dtype)
    return rng.standard_normal(shape, np.float32).astype(array.dtype)
