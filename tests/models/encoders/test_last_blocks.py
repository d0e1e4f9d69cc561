"""Attention of an encoder's last blocks, recomputed from the stored input of the first of them."""

import numpy as np
import pytest
import torch

from repa_pipe.errors import ConfigError
from repa_pipe.models.encoders import describe_encoder, load_encoder
from repa_pipe.models.encoders.last_blocks import load_last_blocks

NAME, RAW = "dinov2-vit-s", "dinov2-vit-s@block=8+norm=none"


@pytest.fixture(scope="module")
def images():
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 64, 64), dtype=np.uint8))


@pytest.fixture(scope="module")
def recomputed(published_file, images):
    """The tokens of the option, and what the blocks project them to."""
    encoder = load_encoder(RAW, weights=published_file(NAME), resolution=64)
    tokens = encoder(images)
    return encoder, torch.cat([tokens.cls_token.unsqueeze(1), tokens.patch_tokens], dim=1)


def test_queries_and_keys_are_those_of_the_whole_encoder(published_file, images, recomputed):
    encoder, tokens = recomputed
    whole = load_encoder(NAME, weights=published_file(NAME), resolution=64)
    seen = []
    for block in whole._model.blocks[8:]:
        block.attn.register_forward_hook(lambda attn, given, _: seen.append(attn.qkv(given[0])))
    whole(images)
    blocks = load_last_blocks(RAW, published_file(NAME))
    found = blocks(tokens)
    assert len(found) == len(seen) == 4
    for (query, key), qkv in zip(found, seen, strict=True):
        assert query.shape == key.shape == (2, 6, 17, 64)
        expected = qkv.unflatten(-1, (3, 6, 64)).permute(2, 0, 3, 1, 4)
        torch.testing.assert_close(query, expected[0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(key, expected[1], atol=1e-4, rtol=1e-4)
    assert blocks.weights_sha256 == encoder.fingerprint["weights_sha256"]
    assert encoder.fingerprint["block"] == "8 of 12, before the final norm"
    assert (
        encoder.fingerprint["weights_sha256"],
        describe_encoder(RAW, 64),
    ) == (whole.fingerprint["weights_sha256"], describe_encoder(NAME, 64))


def test_logits_are_of_the_first_heads_between_patches_and_float32_under_autocast(published_file, recomputed):
    tokens, blocks = recomputed[1], load_last_blocks(RAW, published_file(NAME))
    logits = blocks.logits(tokens, heads=3)
    for found, (query, key) in zip(logits, blocks(tokens), strict=True):
        assert found.shape == (2, 3, 16, 16)
        expected = torch.einsum("bhqd,bhkd->bhqk", query.double(), key.double())[:, :3, 1:, 1:] / 64**0.5
        torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)
        assert not found.requires_grad
    with torch.autocast("cpu", dtype=torch.bfloat16):
        again = blocks.logits(tokens, heads=3)
    assert all(torch.equal(*pair) for pair in zip(logits, again, strict=True))
    assert not any(parameter.requires_grad for parameter in blocks.parameters())


@pytest.mark.parametrize("name", [NAME, f"{NAME}@block=8", f"{NAME}@norm=plain"])
def test_other_tokens_are_refused(name):
    with pytest.raises(ConfigError, match="recomputed from tokens of NAME@block=N"):
        load_last_blocks(name, "no such file")
