"""The layout of a store on disk: names, shapes, dtypes, shards. docs/store-format.md describes it in prose.

Everything here is a plain value; this module opens no files.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

FORMAT_VERSION = 1
ROOT_ATTRIBUTE = "repa_pipe"
SAMPLES_FILE = "samples.parquet"
QUARANTINE_FILE = "quarantine.parquet"
COMMITS = "commits"
FULL_RANGE = "full-range"  # attribute `pixels`: how images become 8-bit RGB (docs/sources.md)
LABEL = "label"
CRC32C = "crc32c"
MOMENTS, FIXED = "moments", "latents"  # arrays of a group of latents: to draw from, or drawn once
FLIPPED = "_flipped"  # suffix of the arrays of the mirrored images

# Names of the dimensions after "sample", for readers such as xarray. `byte`: two 4-bit codes each.
_DIMENSIONS = {
    MOMENTS: ("channel", "y", "x"),
    FIXED: ("channel", "y", "x"),
    "tokens": ("token", "width"),
    "token_scale": ("token",),
    "cls_token": ("width",),
}
_PACKED_TOKENS = ("token", "byte")

MAX_SHARDS = 1 << 24  # per group; more are a damaged number, and lists of them would fill the memory
USUAL_SHARD_SIZE = 1024
MIN_SHARD_SIZE = 16
# every process that opens a store reads one record per shard and group, and the Hugging Face Hub takes at most 10,000
# entries per folder
MANY_SHARDS = 1 << 13
TARGET_NUM_SHARDS = 16  # in small stores: enough to distribute over workers and to resume from


@dataclass(frozen=True, kw_only=True, slots=True)
class ArraySpec:
    """One array of a group; row i is sample i."""

    ITEM_BYTES: ClassVar[dict[str, int]] = {"float32": 4, "float16": 2, "int8": 1, "uint8": 1}

    name: str
    sample_shape: tuple[int, ...]
    dtype: str  # numpy's name: "float16", "int8", …

    @property
    def sample_bytes(self) -> int:
        """Bytes per sample."""
        return math.prod(self.sample_shape) * self.ITEM_BYTES[self.dtype]


def is_flipped(array: str) -> bool:
    """Return whether an array of this name holds mirrored images."""
    return array.endswith(FLIPPED)


def dimension_names(array: ArraySpec) -> tuple[str, ...]:
    """Return the names of an array's dimensions, such as `("sample", "token", "width")`.

    Arrays of a group that share a name have the same size along that dimension.
    """
    name = array.name.removesuffix(FLIPPED)
    packed = name == "tokens" and array.dtype == "uint8"
    own = _PACKED_TOKENS if packed else _DIMENSIONS.get(name, ())
    if len(own) != len(array.sample_shape):  # an array of a kind that this module does not know
        own = tuple(f"{name}_{axis}" for axis in range(len(array.sample_shape)))
    return ("sample", *own)


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupSpec:
    """One group: the output of one VAE or encoder. All its arrays have the same shard boundaries."""

    path: str  # "latents/sd-vae-ft-mse" or "features/dinov2-vit-b"
    arrays: tuple[ArraySpec, ...]
    attributes: dict[str, Any] = field(default_factory=dict)

    @property
    def sample_bytes(self) -> int:
        """Bytes per sample, summed over all arrays."""
        return sum(array.sample_bytes for array in self.arrays)

    @property
    def has_flips(self) -> bool:
        """Whether the group also holds every image mirrored."""
        return any(is_flipped(array.name) for array in self.arrays)


def default_shard_size(num_samples: int) -> int:
    """Return the default number of samples per shard.

    1,024, or a smaller power of two (at least 16) such that a small store still has 16 shards, or a larger one such
    that a store of more than 8.4 million samples has at most 8,192.
    """
    most = math.ceil(num_samples / TARGET_NUM_SHARDS)
    least = max(MIN_SHARD_SIZE, math.ceil(num_samples / MANY_SHARDS))
    return _power_of_two(max(least, min(USUAL_SHARD_SIZE, most)))


def _power_of_two(number: int) -> int:
    """Return the smallest power of two that is not below a number."""
    return 1 << (number - 1).bit_length()


def num_shards(num_samples: int, shard_size: int) -> int:
    """Return the number of shards for `num_samples`; the last one may be partial."""
    return -(-num_samples // shard_size)


def shard_range(shard: int, num_samples: int, shard_size: int) -> range:
    """Return the samples of one shard."""
    return range(shard * shard_size, min(num_samples, (shard + 1) * shard_size))


def shard_file(array: ArraySpec, shard: int) -> str:
    """Return the path of a shard's file relative to its array: zarr v3's default chunk key, `c/<shard>/0/0`."""
    return "/".join(["c", str(shard), *["0"] * len(array.sample_shape)])


def commit_file(group: str, shard: int) -> str:
    """Return the path of a shard's commit record relative to the store."""
    return f"{COMMITS}/{group}/{shard:05d}.json"


def latents_group(vae: str) -> str:
    """Return the group of a VAE: `sd-vae-ft-mse` → `latents/sd-vae-ft-mse`."""
    return f"latents/{_folder_name(vae)}"


def features_group(encoder: str) -> str:
    """Return the group of an encoder: `dinov2-vit-b` → `features/dinov2-vit-b`."""
    return f"features/{_folder_name(encoder)}"


def _folder_name(model: str) -> str:
    """Return a model's name without slashes, which occur in hub names and paths."""
    return model.strip("/").replace("/", "--")
