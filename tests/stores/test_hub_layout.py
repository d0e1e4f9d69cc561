"""Whether the Hub takes the files of a store, computed from the layout without data."""

import pytest

from repa_pipe.errors import StoreError
from repa_pipe.stores.hub_layout import MAX_FOLDER_ENTRIES, require_limits, shard_paths
from repa_pipe.stores.layout import ArraySpec, GroupSpec, default_shard_size, num_shards, shard_file

LATENTS = GroupSpec(
    path="latents/sd-vae-ft-mse", arrays=(ArraySpec(name="moments", sample_shape=(8, 32, 32), dtype="float32"),)
)
FEATURES = GroupSpec(
    path="features/dinov2-vit-b",
    arrays=(
        ArraySpec(name="tokens", sample_shape=(256, 768), dtype="float16"),
        ArraySpec(name="cls_token", sample_shape=(768,), dtype="float16"),
    ),
)


def files_of(num_samples, shard_size):
    """Paths and bytes of the files of a store with two groups."""
    sizes = {}
    for group in (LATENTS, FEATURES):
        for shard in range(num_shards(num_samples, shard_size)):
            files = {f"{array.name}/{shard_file(array, shard)}": array.sample_bytes for array in group.arrays}
            for path in shard_paths(group.path, shard, [*files, f"crc32c/c/{shard}/0"]):
                sizes[path] = files.get(path.removeprefix(f"{group.path}/"), 8) * shard_size
    return sizes


@pytest.mark.slow
@pytest.mark.parametrize("num_samples", [50_000, 1_281_167, 8_388_608, 14_197_122, 100_000_000])
def test_stores_of_the_default_shard_size_fit_at_any_number_of_images(num_samples):
    sizes = files_of(num_samples, default_shard_size(num_samples))
    assert require_limits(sizes, sizes, num_samples) is None
    assert max(sizes.values()) < 13 * 10**9


@pytest.mark.slow
def test_the_limit_is_10000_shards_whose_remedy_fits():
    at_most = MAX_FOLDER_ENTRIES * 1024
    sizes = files_of(at_most, 1024)
    assert require_limits(sizes, sizes, at_most) is None
    sizes = files_of(at_most + 1, 1024)
    with pytest.raises(StoreError, match=r"/ has 10,001 entries, .* at most 10,000 .*--shard-size 2048'"):
        require_limits(sizes, sizes, at_most + 1)
    sizes = files_of(at_most + 1, 2048)
    assert require_limits(sizes, sizes, at_most + 1) is None


def test_files_that_are_too_large_are_refused_and_many_files_are_reported():
    with pytest.raises(StoreError, match=r"^large has 50,000,000,001 bytes, .* smaller shards"):
        require_limits(["large"], {"large": 50 * 10**9 + 1}, 10)
    many = [f"{number // 1000}/{number}" for number in range(100_001)]
    assert "100,001 files" in require_limits(many, {}, 10)
