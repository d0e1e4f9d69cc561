"""Every mode of Pillow's becomes 8-bit RGB by the stated rule: full range, black stays black, white becomes white."""

import io
import struct
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from repa_pipe.errors import BadImageError
from repa_pipe.sources import center_crop, decode_crop
from repa_pipe.sources.formats import readable_formats
from repa_pipe.sources.pixels import RULES, to_rgb

DOCS = Path(__file__).parents[2] / "docs" / "sources.md"
SIDE = 16  # 256 pixels: one for every 8-bit level
RAMP = np.arange(256, dtype=np.uint8).reshape(SIDE, SIDE)


def saved(image, file_format, **options):
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def tiff(levels: np.ndarray, bits: int | None = None, *, white_is_zero: bool = False) -> bytes:
    """Return an uncompressed little-endian TIFF of gray `[H, W]` or color `[H, W, 3]`: Pillow writes fewer kinds."""
    height, width, *samples = levels.shape
    bits = bits or 8 * levels.dtype.itemsize
    data = _packed_12(levels) if bits == 12 else levels.astype(levels.dtype.newbyteorder("<")).tobytes()
    sample_format = {"u": 1, "i": 2, "f": 3}[levels.dtype.kind]
    photometric = 2 if samples else int(not white_is_zero)
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 3 if samples else 1, 278: height}
    tags |= {279: len(data), 339: sample_format}
    entries = b"".join(
        struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 1, value) for tag, value in sorted(tags.items())
    )
    data += bytes(len(data) % 2)
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory


def _packed_12(levels: np.ndarray) -> bytes:
    pairs = levels.astype(np.uint16).reshape(-1, 2)
    first, second = pairs[:, 0], pairs[:, 1]
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=1)
    return packed.astype(np.uint8).tobytes()


def gray_of(data, side=SIDE):
    """Decode a gray image and return one channel, after checking that all three are the same."""
    crop = decode_crop(data, side)
    np.testing.assert_array_equal(crop, crop[..., :1].repeat(3, axis=2))
    return crop[..., 0]


def with_alpha(mode):
    return PIL.Image.merge(mode, [*[PIL.Image.fromarray(RAMP)] * (len(mode) - 1), PIL.Image.new("L", (SIDE, SIDE), 0)])


def palette(**options):
    """Return a PNG whose palette has the 256 grays in reverse order."""
    image = PIL.Image.fromarray(255 - RAMP)
    image = image.convert("P")
    image.putpalette([level for gray in range(255, -1, -1) for level in (gray, gray, gray)])
    return saved(image, "PNG", **options)


def luma(mode):
    """Return the ramp in a mode whose first channel is lightness and the others are neutral at 128."""
    bands = [PIL.Image.fromarray(RAMP), *[PIL.Image.new("L", (SIDE, SIDE), 128)] * 2]
    return PIL.Image.merge(mode, bands)


def black_ink():
    empty = PIL.Image.new("L", (SIDE, SIDE), 0)
    return PIL.Image.merge("CMYK", [empty, empty, empty, PIL.Image.fromarray(255 - RAMP)])


def levels(dtype, white):
    """Return 256 gray levels from 0 to `white`, evenly spaced."""
    return np.linspace(0, white, 256).round().astype(dtype).reshape(SIDE, SIDE)


def premultiplied(mode):
    """Return the ramp over an opaque background in a mode of premultiplied alpha."""
    return PIL.Image.merge(
        mode, [*[PIL.Image.fromarray(RAMP)] * (len(mode) - 1), PIL.Image.new("L", (SIDE, SIDE), 255)]
    )


SIXTEEN = levels(np.uint16, 65_535)


def big_endian():
    return PIL.Image.frombytes("I;16B", (SIDE, SIDE), SIXTEEN.astype(">u2").tobytes())


RAMPS = {  # files with the gray ramp 0 to 255, or with as many levels from black to white
    "8-bit gray PNG": lambda: saved(PIL.Image.fromarray(RAMP), "PNG"),
    "8-bit color PNG": lambda: saved(PIL.Image.fromarray(RAMP).convert("RGB"), "PNG"),
    "gray with alpha 0, PNG": lambda: saved(with_alpha("LA"), "PNG"),
    "color with alpha 0, PNG": lambda: saved(with_alpha("RGBA"), "PNG"),
    "palette PNG": palette,
    "palette PNG with one transparent color": lambda: palette(transparency=7),
    "palette PNG with an alpha per color": lambda: palette(transparency=bytes(range(256))),
    "palette with alpha, TIFF": lambda: saved(PIL.Image.fromarray(RAMP).convert("PA"), "TIFF"),
    "gray GIF": lambda: saved(PIL.Image.fromarray(RAMP), "GIF"),
    "16-bit gray PNG": lambda: saved(PIL.Image.fromarray(SIXTEEN), "PNG"),
    "16-bit gray TIFF": lambda: tiff(SIXTEEN),
    "16-bit gray TIFF, big-endian": lambda: saved(big_endian(), "TIFF"),
    "16-bit gray TIFF, white is zero": lambda: tiff(65_535 - SIXTEEN, white_is_zero=True),
    "16-bit gray PGM": lambda: saved(PIL.Image.fromarray(SIXTEEN), "PPM"),
    "12-bit gray TIFF": lambda: tiff(levels(np.uint16, 4095), 12),
    "signed 8-bit gray TIFF": lambda: tiff(levels(np.int8, 127)),
    "signed 16-bit gray TIFF": lambda: tiff(levels(np.int16, 2**15 - 1)),
    "signed 32-bit gray TIFF": lambda: tiff(levels(np.int32, 2**31 - 1)),
    "32-bit gray TIFF": lambda: tiff(levels(np.uint32, 2**32 - 1)),
    "CMYK TIFF": lambda: saved(black_ink(), "TIFF"),
    "YCbCr TIFF": lambda: saved(luma("YCbCr"), "TIFF"),
    "LAB TIFF": lambda: saved(luma("LAB"), "TIFF"),
}
if int(PIL.__version__.split(".")[0]) < 13:
    del RAMPS["YCbCr TIFF"]  # Pillow 12 cannot read what it has written: such an image is quarantined
EXACT = RAMPS.keys() - {"signed 8-bit gray TIFF", "LAB TIFF"}


@pytest.mark.parametrize("name", sorted(EXACT))
def test_a_ramp_from_black_to_white_is_decoded_to_all_256_levels(name):
    np.testing.assert_array_equal(gray_of(RAMPS[name]()), RAMP)


@pytest.mark.parametrize("name", ["signed 8-bit gray TIFF", "LAB TIFF"])
def test_levels_that_are_not_evenly_spaced_at_8_bits_keep_black_white_and_their_order(name):
    ramp = decode_crop(RAMPS[name](), SIDE).reshape(-1, 3).astype(int)
    assert ramp[0].max() <= 1
    assert ramp[-1].min() >= 254
    assert (np.diff(ramp, axis=0) >= -1).all()


@pytest.mark.parametrize("mode", sorted(RULES.keys() - {"F", "I", "1", "LAB", "I;16N"}))
def test_every_rule_keeps_black_black_and_white_white(mode):
    white = {"P": 255, "PA": (255, 255), "YCbCr": (255, 128, 128), "CMYK": (0, 0, 0, 0)}
    black = {"P": 0, "PA": (0, 255), "YCbCr": (0, 128, 128), "CMYK": (0, 0, 0, 255)}
    full = 65_535 if mode.startswith("I;16") else 255
    bands = len(PIL.Image.new(mode, (1, 1)).getbands())
    for level, named in ((0, black), (255, white)):
        plain = (level // 255 * full,) * bands if bands > 1 else level // 255 * full
        image = PIL.Image.new(mode, (3, 3), named.get(mode, plain))
        if mode in ("RGBa", "La"):
            image = PIL.Image.new(mode, (3, 3), (*(level,) * (bands - 1), 255))
        if mode in ("P", "PA"):
            image.putpalette([gray for gray in range(256) for _ in range(3)])
        assert set(np.asarray(to_rgb(image)).ravel()) == {level}


@settings(max_examples=200, deadline=None)
@given(level=st.integers(0, 65_535))
@example(level=128)
@example(level=129)
@example(level=256)
@example(level=65_407)
def test_16_bit_gray_is_divided_by_257_and_rounded(level):
    image = PIL.Image.fromarray(np.full((3, 3), level, np.uint16))
    assert gray_of(saved(image, "PNG"), 3)[0, 0] == round(level / 257)


@settings(max_examples=50, deadline=None)
@given(color=st.tuples(*[st.integers(0, 65_535)] * 3))
def test_of_16_bit_color_in_a_tiff_the_high_byte_is_used(color):
    data = tiff(np.full((3, 3, 3), color, np.uint16))
    np.testing.assert_array_equal(decode_crop(data, 3)[1, 1], [level >> 8 for level in color])


@settings(max_examples=100, deadline=None)
@given(low=st.integers(0, 2**32 - 1), high=st.integers(0, 2**32 - 1), signed=st.booleans())
def test_32_bit_gray_is_scaled_in_order(low, high, signed):
    low, high = sorted((low >> signed, high >> signed))
    white = 2 ** (32 - signed) - 1
    pixels = np.array([[low, high, white]] * 3, np.int32 if signed else np.uint32)
    assert gray_of(tiff(pixels), 3)[0].tolist() == [round(low * 255 / white), round(high * 255 / white), 255]


def test_two_levels_become_0_and_255():
    pixels = (RAMP % 2).astype(bool)
    for file_format in ("PNG", "TIFF", "BMP", "PPM"):
        data = saved(PIL.Image.fromarray(pixels), file_format)
        assert PIL.Image.open(io.BytesIO(data)).mode == "1"
        np.testing.assert_array_equal(gray_of(data), np.where(pixels, 255, 0))


REFUSED = {
    "float TIFF": (lambda: tiff(levels(np.float32, 1.0)), "its pixels are floating-point numbers"),
    "float PFM": (lambda: saved(PIL.Image.new("F", (SIDE, SIDE), 0.5), "PPM"), "its pixels are floating-point numbers"),
    "negative levels": (lambda: tiff(levels(np.int16, -5)), r"16-bit gray levels are -5 to 0; expected 0 \(black\)"),
    "negative 32-bit levels": (lambda: tiff(levels(np.int32, -5)), "32-bit gray levels are -5 to 0"),
    "negative 8-bit levels": (lambda: tiff(levels(np.int8, -5)), "8-bit gray levels are -5 to 0"),
    "16 bits in 32": (lambda: tiff(levels(np.int32, 65_535)), "32-bit gray levels end at 65,535 of 2,147,483,647"),
    "double precision": (lambda: tiff(levels(np.float64, 1)), "a TIFF of a kind that Pillow does not decode"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_pixels_without_a_defined_white_are_refused_with_the_reason(name):
    make, reason = REFUSED[name]
    with pytest.raises(BadImageError, match=reason):
        decode_crop(make(), SIDE)


def test_a_32_bit_image_that_is_black_stays_black():
    assert not gray_of(tiff(np.zeros((3, 3), np.int32)), 3).any()


def test_integers_without_a_file_are_16_bit_levels():
    image = PIL.Image.fromarray(SIXTEEN.astype(np.int32))
    assert image.mode == "I"
    np.testing.assert_array_equal(center_crop(image, SIDE)[..., 0], RAMP)
    with pytest.raises(BadImageError, match=r"16-bit gray levels are 0 to 65,536; expected 0 \(black\) to 65,535"):
        center_crop(PIL.Image.fromarray(np.array([[0, 65_536]], np.int32)), 1)


def test_a_mode_without_a_rule_is_refused():
    with pytest.raises(BadImageError, match=r"mode 'HSV'; expected one of RGB, RGBA"):
        center_crop(PIL.Image.new("HSV", (3, 3)), 3)


@pytest.mark.parametrize("file_format", ["GIF", "TIFF", "PNG", "WEBP", "AVIF"])
def test_the_first_frame_is_used(file_format):
    if file_format not in readable_formats():
        pytest.skip(f"this Pillow has no {file_format}")
    frames = [PIL.Image.new("RGB", (SIDE, SIDE), color) for color in ("red", "blue")]
    data = saved(frames[0], file_format, save_all=True, append_images=frames[1:])
    assert PIL.Image.open(io.BytesIO(data)).n_frames == 2
    assert np.abs(decode_crop(data, SIDE).astype(int) - (255, 0, 0)).max() <= 2


def test_the_documentation_states_every_rule():
    text = DOCS.read_text()
    for mode, rule in RULES.items():
        assert f"| `{mode}` | {rule.pixels} | {rule.rule} |" in text
