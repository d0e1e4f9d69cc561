"""Image sizes that encoders accept, found without weights."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from repa_pipe.errors import ConfigError
from repa_pipe.models.encoders import load_encoder
from repa_pipe.models.encoders.registry import REGISTRY
from repa_pipe.models.encoders.sizes import require_encoder_resolution

WINDOWS = "timm:maxvit_tiny_tf_224"  # its windows must divide its feature maps


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(name=st.sampled_from(sorted(REGISTRY)), tokens=st.integers(1, 40))
def test_published_encoders_accept_every_multiple_of_16(name, tokens):
    require_encoder_resolution(name, 16 * tokens)


@settings(deadline=None)
@given(name=st.sampled_from(sorted(REGISTRY)), tokens=st.integers(1, 100))
def test_the_patches_of_vision_transformers_coincide_with_the_tokens_of_the_model(name, tokens):
    """As published: 224 pixels for 256, 448 for 512, for patches of 14 pixels."""
    entry = REGISTRY[name]
    assert entry.input_size(16 * tokens) == entry.patch * tokens


@pytest.mark.parametrize("size", [0, 8, 250, -16])
def test_sizes_without_a_grid_of_tokens_are_refused(size):
    with pytest.raises(ConfigError, match="is not a positive multiple of 16"):
        require_encoder_resolution("dinov2-vit-b", size)


@pytest.mark.slow
def test_a_network_that_needs_other_sizes_is_refused_with_the_nearest_that_work(tmp_path):
    for size in (224, 256, 512):
        require_encoder_resolution(WINDOWS, size)
    with pytest.raises(ConfigError, match=r"accept images of 240 pixels \(.+\): choose --resolution 224 or 256, or"):
        require_encoder_resolution(WINDOWS, 240)
    with pytest.raises(ConfigError, match="does not accept images of 240 pixels"):  # before weights are looked up
        load_encoder(WINDOWS, weights=tmp_path / "nowhere", resolution=240)


@pytest.mark.parametrize("size", [144, 336])
def test_tokens_have_the_grid_of_the_model_at_every_size(size):
    encoder = load_encoder("efficientnet-lite0", resolution=size)
    tokens = encoder(torch.zeros(1, 3, size, size, dtype=torch.uint8)).patch_tokens
    assert tokens.shape == (1, (size // 16) ** 2, 112)
