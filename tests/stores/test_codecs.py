import hashlib
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from repa_pipe.errors import ConfigError, StoreError
from repa_pipe.stores import open_store
from repa_pipe.stores.codecs import CODEC_NAMES, NORMAL_LEVELS, codec_from_attributes, make_codec
from repa_pipe.stores.layout import GroupSpec
from repa_pipe.stores.rotation import Rotation
from repa_pipe.stores.writer import ShardWriter, create_group

WIDTHS = [768, 1024, 1280, 1536, 384, 112, 1408, 1152]


def dino_like(count, width, seed=0):
    """Tokens [count, 256, width] with the difficulties of real ones: outlier channels, massive tokens, a mean."""
    g = torch.Generator().manual_seed(seed)
    low_rank = torch.randn(96, width, generator=g) * torch.arange(1, 97).pow(-0.5)[:, None]
    coarse = torch.randn(count, 96, 4, 4, generator=g)
    smooth = torch.nn.functional.interpolate(coarse, size=(16, 16), mode="bicubic").flatten(2).transpose(1, 2)
    tokens = (smooth + torch.randn(count, 1, 96, generator=g)) @ low_rank
    tokens = tokens + 0.6 * torch.randn(count, 256, width, generator=g)
    tokens[..., torch.randperm(width, generator=g)[:6]] *= 8
    massive = torch.zeros(width)
    massive[torch.randperm(width, generator=g)[:4]] = torch.tensor([150.0, -90.0, 220.0, 60.0])
    tokens = tokens + (torch.rand(count, 256, 1, generator=g) < 0.02) * massive
    gain = torch.exp(0.35 * torch.randn(width, generator=g)) * 1.7
    return torch.nn.functional.layer_norm(tokens, (width,)) * gain + 0.15 * torch.randn(width, generator=g)


def stored(codec, tokens):
    return {name: torch.from_numpy(array) for name, array in codec.encode(tokens).items()}


def restored(codec, tokens, dtype=torch.float32):
    found = stored(codec, tokens)
    return codec.decode(found["tokens"], found.get("token_scale"), dtype)


def cosine(a, b):
    a, b = a.double(), b.double()
    return (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))


def reference_decode(attributes, tokens, token_scale):
    """The formulas of docs/codecs.md in plain numpy and Python, using only the group's attributes."""
    if attributes["name"] == "float16":
        return tokens.astype(np.float64)
    width, rotation = attributes["width"], attributes["rotation"]
    assert rotation["kind"] == "signs-hadamard-dct"
    size, count = rotation["block"], rotation["num_blocks"]
    signs = []
    while len(signs) < width:
        digest = hashlib.sha256(f"repa-pipe rotation {rotation['seed']} {len(signs) // 256}".encode()).digest()
        signs += [-1 if byte >> bit & 1 else 1 for byte in digest for bit in range(8)]
    matrix = np.empty((width, width))
    for row in range(width):
        k, i = divmod(row, size)
        for column in range(width):
            c, j = divmod(column, size)
            dct = math.sqrt((1 if k == 0 else 2) / count) * math.cos(math.pi * k * (2 * c + 1) / (2 * count))
            matrix[row, column] = dct * (-1) ** (i & j).bit_count() / math.sqrt(size) * signs[column]
    if attributes["name"] == "int8":
        levels = tokens * attributes["step"]
    else:
        assert attributes["packing"] == "low nibble first"
        table = np.array(attributes["levels"])
        levels = np.stack([table[tokens & 15], table[tokens >> 4]], -1).reshape(*tokens.shape[:2], width)
    return levels @ matrix * token_scale.astype(np.float64)[..., None]


@pytest.mark.parametrize("width", WIDTHS)
def test_float16_restores_tokens_of_a_float16_encoder_exactly(width):
    tokens = dino_like(1, width).half()
    codec = make_codec("float16", 256, width)
    assert torch.equal(restored(codec, tokens, torch.float16), tokens)
    assert torch.equal(restored(codec, tokens), tokens.float())


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(("name", "mean", "least"), [("int8", 0.99995, 0.9999), ("int4", 0.995, 0.985)])
def test_quantized_codecs_preserve_directions(name, width, mean, least):
    tokens = dino_like(2, width)
    codec = make_codec(name, 256, width)
    found = stored(codec, tokens)
    for token_scale in (found["token_scale"], None):
        cosines = cosine(codec.decode(found["tokens"], token_scale), tokens)
        assert cosines.mean() > mean
        assert cosines.min() > least


def test_int4_reaches_the_distortion_of_the_lloyd_max_quantizer():
    # Max 1960, table I: mean squared error 0.009497 at 16 levels of a normal variable; cosine² = 1 - error
    tokens = torch.randn(4, 256, 768, generator=torch.Generator().manual_seed(5))
    cosines = cosine(restored(make_codec("int4", 256, 768), tokens), tokens)
    assert cosines.mean() == pytest.approx(math.sqrt(1 - 0.009497), abs=5e-5)


def test_int4_levels_are_the_fixed_point_of_lloyds_iteration():
    def density(x):
        return math.exp(-x * x / 2) / math.sqrt(2 * math.pi)

    edges = [-math.inf, *((a + b) / 2 for a, b in itertools.pairwise(NORMAL_LEVELS)), math.inf]
    for level, (low, high) in zip(NORMAL_LEVELS, itertools.pairwise(edges), strict=True):
        mass = (math.erf(high / math.sqrt(2)) - math.erf(low / math.sqrt(2))) / 2
        assert level == pytest.approx((density(low) - density(high)) / mass, abs=1e-6)


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_the_scale_minimizes_the_squared_error(name):
    tokens = dino_like(1, 384).double()
    back = restored(make_codec(name, 256, 384), tokens).double()
    # least squares: the error is orthogonal to the restored token, up to the rounding of the scale
    error = ((tokens - back) * back).sum(-1) / back.square().sum(-1)
    assert error.abs().max() < 2**-11


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(CODEC_NAMES),
    batch=st.integers(0, 3),
    num_tokens=st.integers(1, 5),
    half_width=st.integers(1, 40),
    seed=st.integers(0, 2**32),
)
def test_tokens_of_any_shape_are_restored_as_the_attributes_describe(name, batch, num_tokens, half_width, seed):
    width = 2 * half_width
    codec = make_codec(name, num_tokens, width)
    tokens = torch.randn(batch, num_tokens, width, generator=torch.Generator().manual_seed(seed)).exp()
    arrays = codec.encode(tokens)
    for spec in codec.arrays:
        assert arrays[spec.name].shape == (batch, *spec.sample_shape)
        assert arrays[spec.name].dtype == spec.dtype
    assert list(arrays) == [spec.name for spec in codec.arrays]
    attributes = json.loads(json.dumps(codec.attributes))
    expected = reference_decode(attributes, arrays["tokens"], arrays.get("token_scale"))
    reader = codec_from_attributes(attributes, num_tokens, width)
    back = restored(reader, tokens).numpy()
    np.testing.assert_allclose(back, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max(initial=0))


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_the_decoder_in_the_docs_matches_ours(name):
    text = (Path(__file__).parents[2] / "docs" / "codecs.md").read_text()
    names = {"np": np, "scipy": scipy, "sha256": hashlib.sha256}
    exec(text.split("```python\n")[1].split("```")[0], names)
    codec = make_codec(name, 256, 768)
    tokens = dino_like(1, 768)
    arrays = codec.encode(tokens)
    back = names["decode"](codec.attributes, arrays["tokens"][0], arrays["token_scale"][0].astype(np.float64))
    np.testing.assert_allclose(restored(codec, tokens)[0].numpy(), back, rtol=1e-4, atol=1e-4)


def test_the_recipe_in_the_docs_matches_the_stored_one():
    text = (Path(__file__).parents[2] / "docs" / "codecs.md").read_text()
    shown = json.loads(text.split("```json\n")[1].split("```")[0])
    assert shown == make_codec("int4", 256, 768).attributes


@settings(max_examples=60, deadline=None)
@given(width=st.integers(1, 64), seed=st.integers(0, 2**32), exponent=st.integers(-30, 4), outliers=st.floats(0, 5))
def test_int8_errors_are_within_half_a_step(width, seed, exponent, outliers):
    tokens = torch.randn(2, 3, width, generator=torch.Generator().manual_seed(seed)).mul(outliers).exp()
    tokens = tokens / tokens.amax() * 10.0**exponent
    # every rotated coordinate is within half a step, peak / 254, and the norm of a token is at least its peak
    sine = math.sqrt(width) / 254
    cosines = cosine(restored(make_codec("int8", 3, width), tokens), tokens)
    assert cosines.min() >= math.sqrt(max(0.0, 1 - sine**2)) - 1e-6


@pytest.mark.parametrize("name", ["int8", "int4"])
@pytest.mark.parametrize("magnitude", [1e-37, 1e-12, 1e-6, 1.0, 1e3, 1e4])
def test_quantized_codecs_preserve_directions_at_any_magnitude(name, magnitude):
    tokens = dino_like(1, 768) * magnitude
    codec = make_codec(name, 256, 768)
    found = stored(codec, tokens)
    assert torch.isfinite(found["token_scale"]).all()
    for token_scale in (found["token_scale"], None):
        assert cosine(codec.decode(found["tokens"], token_scale), tokens).min() > 0.985


@pytest.mark.parametrize("name", CODEC_NAMES)
def test_zero_tokens_are_restored_to_zero_with_and_without_scale(name):
    tokens = dino_like(2, 112)
    tokens[0, 3] = 0
    tokens[1] = 0
    codec = make_codec(name, 256, 112)
    found = stored(codec, tokens)
    for token_scale in (found.get("token_scale"), None):
        back = codec.decode(found["tokens"], token_scale)
        assert torch.equal(back.abs().sum(-1) == 0, tokens.abs().sum(-1) == 0)
        assert torch.isfinite(back).all()


@pytest.mark.parametrize("name", CODEC_NAMES)
def test_a_sample_of_zero_bytes_decodes_to_zero(name):
    codec = make_codec(name, 4, 24)
    arrays = {
        spec.name: torch.zeros((2, *spec.sample_shape), dtype=getattr(torch, spec.dtype)) for spec in codec.arrays
    }
    assert not codec.decode(arrays["tokens"], arrays.get("token_scale")).any()
    assert not codec.decode(arrays["tokens"]).any()


@pytest.mark.parametrize("name", CODEC_NAMES)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nonfinite_values_are_refused_with_their_position(name, value):
    tokens = dino_like(3, 112)
    tokens[2, 17, 5] = value
    with pytest.raises(StoreError, match=r"token 17 of sample 2 of the batch contains -?(nan|inf): encode in bfloat16"):
        make_codec(name, 256, 112).encode(tokens)


@pytest.mark.parametrize(("name", "largest"), [("float16", 65504.0), ("int8", 50000.0), ("int4", 50000.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tokens_too_large_for_float16_are_refused(name, largest, dtype):
    codec = make_codec(name, 2, 64)
    tokens = torch.full((1, 2, 64), largest, dtype=dtype)
    tokens[:, :, ::3] *= -1
    assert torch.isfinite(restored(codec, tokens)).all()
    too_large = tokens.clone()
    too_large[0, 1] = 2e5
    with pytest.raises(StoreError, match=r"token 1 of sample 0 of the batch contains 200000, too large to store"):
        codec.encode(too_large)
    with pytest.raises(
        StoreError, match="too large to store" if dtype == torch.float64 else "contains 1e\\+38, too large"
    ):
        codec.encode(torch.full_like(tokens, 1e38 if dtype == torch.float32 else 1e300))


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_quantized_codecs_store_outliers_that_exceed_float16(name):
    tokens = torch.ones(1, 1, 256)
    tokens[0, 0, 100] = 2e5
    assert cosine(restored(make_codec(name, 1, 256), tokens), tokens).min() > 0.99


@pytest.mark.parametrize("name", CODEC_NAMES)
def test_codes_depend_on_the_token_alone(name):
    tokens = dino_like(3, 384)
    codec = make_codec(name, 256, 384)
    whole = codec.encode(tokens)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
        single = [make_codec(name, 256, 384).encode(tokens[i : i + 1]) for i in range(3)]
    for array, expected in whole.items():
        np.testing.assert_array_equal(np.concatenate([part[array] for part in single]), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", CODEC_NAMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_codes_from_a_gpu_match_those_from_a_cpu(name, width):
    tokens = dino_like(2, width)
    codec = make_codec(name, 256, width)
    expected = codec.encode(tokens)
    for array, found in codec.encode(tokens.cuda()).items():
        np.testing.assert_array_equal(found, expected[array])
    on_gpu = {array: torch.from_numpy(found).cuda() for array, found in expected.items()}
    back = codec.decode(on_gpu["tokens"], on_gpu.get("token_scale"))
    assert cosine(back.cpu(), restored(codec, tokens)).min() > 0.99999


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("int8", "3f95a34ce1699dfd"),
        ("int4", "20b399293ac1bc9a"),
    ],
)
def test_codes_match_the_recorded_digest(name, digest):
    tokens = torch.arange(4 * 768).mul(7919).remainder(1009).sub(504).div(128).view(1, 4, 768)
    arrays = make_codec(name, 4, 768).encode(tokens)
    found = hashlib.sha256(b"".join(array.tobytes() for array in arrays.values())).hexdigest()
    assert found[:16] == digest


@pytest.mark.parametrize("width", [*range(1, 40), *WIDTHS])
def test_rotation_is_orthogonal_and_spreads_every_channel(width):
    rotation = Rotation(width, 0)
    matrix = torch.from_numpy(rotation.matrix()).double()
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(width).double(), atol=2e-6, rtol=0)
    assert matrix.abs().max() <= math.sqrt(2 / width) * (1 + 1e-6)
    tokens = torch.randn(3, width, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(rotation.rotate(tokens).double(), tokens.double() @ matrix.T, atol=1e-5, rtol=1e-5)


def test_signs_come_from_sha_256():
    digest = hashlib.sha256(b"repa-pipe rotation 7 1").digest()
    expected = [1 - 2 * (digest[byte] >> bit & 1) for byte in range(32) for bit in range(8)]
    assert Rotation(600, 7).signs()[256:512].tolist() == expected
    assert abs(Rotation(4096, 0).signs().sum()) < 4 * 64


@pytest.mark.parametrize("name", CODEC_NAMES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_decoding_in_half_precision_is_accurate(name, dtype):
    tokens = dino_like(1, 768)
    codec = make_codec(name, 256, 768)
    half = restored(codec, tokens, dtype)
    assert half.dtype == dtype
    assert cosine(half, restored(codec, tokens)).min() > 0.99999


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_autocast_does_not_degrade_a_float32_decode(name):
    tokens = dino_like(1, 384)
    codec = make_codec(name, 256, 384)
    expected = restored(codec, tokens)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = restored(codec, tokens)
    assert torch.equal(found, expected)


def test_gradients_flow_through_a_loss_with_decoded_tokens():
    tokens = dino_like(1, 112)
    for name in CODEC_NAMES:
        codec = make_codec(name, 256, 112)
        with torch.inference_mode():
            restored(codec, tokens)
        projected = torch.randn(1, 256, 112, requires_grad=True)
        (projected * restored(codec, tokens)).sum().backward()
        assert projected.grad.abs().sum() > 0


@pytest.mark.parametrize("name", CODEC_NAMES)
def test_tokens_survive_a_round_trip_through_a_store(helpers, tmp_path, name):
    codec = make_codec(name, 256, 112)
    tokens = dino_like(20, 112)
    path = tmp_path / "store"
    manifest = helpers.new_store(path, 20, 16)
    spec = GroupSpec(
        path="features/enc",
        arrays=codec.arrays,
        attributes=helpers.FEATURES.attributes | {"num_tokens": 256, "width": 112, "codec": codec.attributes},
    )
    create_group(path, manifest, spec)
    for shard in (0, 1):
        with ShardWriter(path, manifest, spec, shard) as writer:
            writer.append(codec.encode(tokens[writer.samples.start : writer.samples.stop]))
            writer.commit(np.zeros(len(writer.samples), np.uint32), ())
    with open_store(path) as store:
        read = store.read(["features/enc"], [19, 3, 0])
        reader = codec_from_attributes(store.group("features/enc").attributes["codec"], 256, 112)
    arrays = {key.rsplit("/", 1)[1]: torch.from_numpy(value) for key, value in read.items()}
    back = reader.decode(arrays["tokens"], arrays.get("token_scale"))
    assert torch.equal(back, restored(codec, tokens[[19, 3, 0]]))


def test_unknown_codecs_and_unsupported_widths_are_refused():
    with pytest.raises(ConfigError, match="unknown codec 'fp8'; expected one of float16, int8, int4"):
        make_codec("fp8", 256, 768)
    with pytest.raises(ConfigError, match="expected an even width, found 7; use 'int8'"):
        make_codec("int4", 256, 7)
    with pytest.raises(ConfigError, match="cannot store 0 tokens of width 768"):
        make_codec("float16", 0, 768)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "int3"}, "unknown codec 'int3'"),
        ({"width": 384}, "width 768"),
        ({"levels": [0.0] * 3}, "expected 16 levels, found 3"),
        ({"packing": "high nibble first"}, "install the version that wrote the store"),
        ({"rotation": None}, "is not a valid recipe"),
        ({"rotation": {"kind": "qr", "seed": 0, "block": 256, "num_blocks": 3}}, "install the version"),
        ({"outliers": 4}, "install the version that wrote the store"),
    ],
)
def test_recipes_of_other_versions_are_refused(change, message):
    attributes = json.loads(json.dumps(make_codec("int4", 256, 768).attributes)) | change
    with pytest.raises(StoreError, match=message):
        codec_from_attributes(attributes, 256, 768)


def test_a_recipe_with_another_seed_and_codebook_is_decoded():
    attributes = json.loads(json.dumps(make_codec("int4", 2, 24).attributes))
    attributes["rotation"]["seed"] = 11
    attributes["levels"] = [(i - 7.5) / 4 for i in range(16)]
    codec = codec_from_attributes(attributes, 2, 24)
    tokens = torch.randn(3, 2, 24, generator=torch.Generator().manual_seed(2))
    arrays = codec.encode(tokens)
    expected = reference_decode(attributes, arrays["tokens"], arrays["token_scale"])
    np.testing.assert_allclose(restored(codec, tokens).numpy(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CODEC_NAMES)
def test_wrong_shapes_and_dtypes_are_refused(name):
    codec = make_codec(name, 16, 24)
    for tokens in (torch.zeros(2, 16, 25), torch.zeros(16, 24), torch.zeros(2, 16, 24, dtype=torch.int32)):
        with pytest.raises(StoreError, match=rf"codec '{name}': expected floating-point tokens \[B, 16, 24\]"):
            codec.encode(tokens)
    good = stored(codec, torch.randn(2, 16, 24))["tokens"]
    for codes in (good[:, :, :5], good.int()):
        with pytest.raises(StoreError, match=rf"codec '{name}': expected codes \[B, 16, "):
            codec.decode(codes)
