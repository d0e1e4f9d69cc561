"""What a store looks like on disk: names, shapes, dtypes, shards. docs/store-format.md tells it in prose.

Everything here is a plain value; no file is opened.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

FORMAT_VERSION = 1
ROOT_ATTRIBUTE = "repa_pipe"
SAMPLES_FILE = "samples.parquet"
QUARANTINE_FILE = "quarantine.parquet"
COMMITS = "commits"
LABEL = "label"
CRC32C = "crc32c"
TOKEN_COSINE = "token_cosine"  # no array: what the commit records say of the codec
FLIPPED = "_flipped"  # suffix of the arrays that hold the mirrored images'

MAX_SHARD_SIZE = 1024
MIN_SHARD_SIZE = 16
SHARDS_WANTED = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class ArraySpec:
    """One array of a group: sample i is row i."""

    name: str
    sample_shape: tuple[int, ...]
    dtype: str  # numpy's name: "float16", "int8", …

    @property
    def sample_bytes(self) -> int:
        """Bytes of one sample."""
        itemsize = {"float32": 4, "float16": 2, "int8": 1, "uint8": 1}[self.dtype]
        return math.prod(self.sample_shape) * itemsize


def is_flipped(array: str) -> bool:
    """Whether an array of this name holds the mirrored images'."""
    return array.endswith(FLIPPED)


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupSpec:
    """One group: what a VAE or an encoder leaves behind. All its arrays share shard boundaries."""

    path: str  # "latents/sd-vae-ft-mse" or "features/dinov2-vit-b"
    arrays: tuple[ArraySpec, ...]
    attributes: dict[str, Any] = field(default_factory=dict)

    @property
    def sample_bytes(self) -> int:
        """Bytes of one sample over all arrays."""
        return sum(array.sample_bytes for array in self.arrays)

    @property
    def has_flips(self) -> bool:
        """Whether every image stands there mirrored too."""
        return any(is_flipped(array.name) for array in self.arrays)


def default_shard_size(num_samples: int) -> int:
    """1,024 samples, or fewer (a power of two, at least 16) so that a small store still has 16 shards to share out."""
    wanted = max(1, math.ceil(num_samples / SHARDS_WANTED))
    return min(MAX_SHARD_SIZE, max(MIN_SHARD_SIZE, 1 << (wanted - 1).bit_length()))


def num_shards(num_samples: int, shard_size: int) -> int:
    """How many shards hold `num_samples`; the last one may be partial."""
    return -(-num_samples // shard_size)


def shard_range(shard: int, num_samples: int, shard_size: int) -> range:
    """The samples of one shard."""
    return range(shard * shard_size, min(num_samples, (shard + 1) * shard_size))


def shard_file(array: ArraySpec, shard: int) -> str:
    """Path of a shard's file below its array: zarr v3's default chunk key, `c/<shard>/0/0`."""
    return "/".join(["c", str(shard), *["0"] * len(array.sample_shape)])


def commit_file(group: str, shard: int) -> str:
    """Path of a shard's commit record below the store."""
    return f"{COMMITS}/{group}/{shard:05d}.json"


def latents_group(vae: str) -> str:
    """`sd-vae-ft-mse` → `latents/sd-vae-ft-mse`."""
    return f"latents/{_as_name(vae)}"


def features_group(encoder: str) -> str:
    """`dinov2-vit-b` → `features/dinov2-vit-b`."""
    return f"features/{_as_name(encoder)}"


def _as_name(model: str) -> str:
    """A model's name as one folder name: hub names and paths hold slashes."""
    return model.strip("/").replace("/", "--")
