import io
import struct
import subprocess
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageFile
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from repa_pipe.errors import BadImageError, ConfigError
from repa_pipe.sources import center_crop, decode_crop, formats
from repa_pipe.sources.decode import image_size

IMAGES = Path(__file__).parents[1] / "reference" / "center_crop" / "images"
PHOTOGRAPH = (IMAGES / "portrait_large.jpg").read_bytes()
DRAWING = (IMAGES / "landscape.png").read_bytes()


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_of_pixels(width: int, height: int, depth: int, kind: int, rows: bytes, *chunks: bytes) -> bytes:
    """A PNG of filtered rows; `chunks` come before its pixels."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))
    pixels = png_chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + b"".join([header, *chunks, pixels, png_chunk(b"IEND", b"")])


def png_of_size(width: int, height: int) -> bytes:
    """A valid gray PNG header of any size, with almost no data."""
    return png_of_pixels(width, height, 8, 0, bytes(64))


def flipped(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 0xFF]) + data[position + 1 :]


def webp() -> bytes:
    file = io.BytesIO()
    PIL.Image.open(io.BytesIO(DRAWING)).save(file, "WEBP", quality=50)
    return file.getvalue()


BROKEN = {
    "nothing": (b"", r"the file is empty \(0 bytes\)"),
    "a web page": (b"<!DOCTYPE html><html></html>", "its format is HTML; expected one of JPEG, PNG"),
    "zeros": (bytes(5000), r"not an image \(starts with b'.x00"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "its format is PostScript"),
    "a JPEG cut in its header": (PHOTOGRAPH[:20], r"its JPEG header is truncated or damaged \(20 bytes\)"),
    "a JPEG cut in the middle": (
        PHOTOGRAPH[: len(PHOTOGRAPH) // 2],
        "its JPEG data is truncated or damaged .*bytes not processed",
    ),
    "a JPEG cut before its end": (PHOTOGRAPH[:-500], "its JPEG data is truncated"),
    "a PNG cut in its header": (DRAWING[:20], "its PNG header is truncated or damaged"),
    "a PNG cut in the middle": (DRAWING[: len(DRAWING) // 2], "its PNG data is truncated or damaged"),
    "a PNG with a flipped bit": (flipped(DRAWING, len(DRAWING) // 2), "its PNG data is truncated or damaged"),
    "a PNG with a damaged header": (flipped(DRAWING, 17), "its PNG header is truncated or damaged"),
    "a WebP cut in the middle": (webp()[:900], "its WEBP header is truncated or damaged"),
    "a decompression bomb": (png_of_size(60_000, 60_000), "more than 178,956,970 pixels"),
    "a bomb just over the limit": (png_of_size(13_378, 13_378), "more than 178,956,970"),
    "a very long image": (png_of_size(70_000, 900), "70000 x 900 pixels: a side is longer than 65,535 pixels"),
    "a divider line": (png_of_size(300, 1), "300 x 1 pixels: a side is shorter than 3 pixels"),
    "a double divider line": (png_of_size(2, 300), "2 x 300 pixels: a side is shorter than 3 pixels"),
    "a tracking pixel": (png_of_size(1, 1), "1 x 1 pixels: a side is shorter"),
    "no pixels at all": (png_of_size(0, 10), "its PNG header is truncated or damaged"),
    "more pixels stated than held": (png_of_size(500, 500), "its PNG data is truncated or damaged"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_image_has_a_short_and_reproducible_reason(name):
    data, reason = BROKEN[name]
    reasons = []
    for _ in range(2):
        with pytest.raises(BadImageError, match=reason) as caught:
            decode_crop(data, 32)
        reasons.append(str(caught.value))
    assert reasons[0] == reasons[1]
    assert len(reasons[0]) < 250
    assert "\n" not in reasons[0]
    assert " at 0x" not in reasons[0]


def test_an_image_of_three_by_three_pixels_is_decoded(encode):
    assert decode_crop(encode(size=(3, 3)), 32).shape == (32, 32, 3)


def test_a_narrow_image_that_would_be_scaled_to_too_many_pixels_is_refused(encode):
    data = encode(size=(4, 20_000))
    with pytest.raises(BadImageError, match="too narrow to crop at 512"):
        decode_crop(data, 512)
    assert decode_crop(data, 32).shape == (32, 32, 3)


def test_pillows_option_to_load_truncated_images_is_refused(monkeypatch):
    monkeypatch.setattr(PIL.ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(ConfigError, match="LOAD_TRUNCATED_IMAGES is True"):
        decode_crop(PHOTOGRAPH[:-500], 32)


def test_the_size_limit_remains_when_pillows_is_disabled(monkeypatch):
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(BadImageError, match="13378 x 13378 pixels: more than 178,956,970"):
        decode_crop(png_of_size(13_378, 13_378), 32)


OUT_OF_MEMORY = """
import resource, sys
from pathlib import Path
from repa_pipe.errors import BadImageError
from repa_pipe.sources import decode_crop

data = sys.stdin.buffer.read()
decode_crop(Path(sys.argv[1]).read_bytes(), 32)
pages = int(Path("/proc/self/statm").read_text().split()[0])
for megabytes in [8, 100, 200]:
    limit = pages * resource.getpagesize() + (megabytes << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    try:
        decode_crop(data, 9000)
        print("crop")
    except MemoryError:
        print("out of memory")
    except BadImageError as error:
        print(error)
"""


def test_running_out_of_memory_is_not_reported_as_a_bad_image():
    command = [sys.executable, "-c", OUT_OF_MEMORY, str(IMAGES / "tiny.png")]
    result = subprocess.run(command, input=large_png(), capture_output=True, check=True)
    outcomes = result.stdout.decode().splitlines()
    assert len(outcomes) == 3
    assert outcomes[0] == "out of memory"
    assert set(outcomes) <= {"out of memory", "crop"}


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "PPM", "GIF"])
def test_every_format_is_decoded_to_the_crop_of_its_pixels(encode, file_format):
    data = encode(3, (70, 50), file_format)
    with PIL.Image.open(io.BytesIO(data)) as image:
        expected = center_crop(image, 32)
    np.testing.assert_array_equal(decode_crop(data, 32), expected)


def test_the_format_is_detected_from_the_contents(encode):
    # ImageNet's n02105855_2933.JPEG is a PNG, and 22 of its JPEGs are CMYK.
    assert decode_crop(encode(1, (40, 40), "PNG"), 32).shape == (32, 32, 3)
    assert decode_crop(encode(1, (40, 40), "JPEG", "CMYK"), 32).shape == (32, 32, 3)


@settings(max_examples=100, deadline=None)
@given(level=st.integers(0, 65_535), kind=st.sampled_from([(2, 3), (6, 4), (4, 2)]))
def test_the_high_byte_of_16_bit_color_and_of_16_bit_gray_with_alpha_is_used(level, kind):
    code, channels = kind  # of PNG: color, color with alpha, gray with alpha
    row = b"\0" + level.to_bytes(2) * channels * 3
    assert set(decode_crop(png_of_pixels(3, 3, 16, code, row * 3), 3).ravel()) == {level >> 8}


METADATA = {
    "compressed text": png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(3 << 20))),
    "international text": png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(b"x" * (3 << 20))),
    "a color profile": png_chunk(b"iCCP", b"profile\0\0" + zlib.compress(bytes(3 << 20))),
    "65 MB of text": png_chunk(b"tEXt", b"Comment\0" + b"x" * (65 << 20)),
}


@pytest.mark.parametrize("name", METADATA)
@pytest.mark.parametrize("place", ["before", "after"])
def test_a_png_with_more_metadata_than_pillow_accepts_is_decoded(name, place):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 20), np.uint8)
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    data = png_of_pixels(20, 20, 8, 0, rows, METADATA[name])
    if place == "after":
        plain = png_of_pixels(20, 20, 8, 0, rows)
        data = plain[:-12] + METADATA[name] + plain[-12:]
    with pytest.raises(ValueError, match=r"(?i)MAX_TEXT|too large"):  # otherwise, this tests nothing
        PIL.Image.open(io.BytesIO(data)).load()
    np.testing.assert_array_equal(decode_crop(data, 20)[..., 0], pixels)
    assert image_size(data) == (20, 20)


@pytest.mark.parametrize("file_format", ["AVIF", "JPEG2000"])
def test_newer_formats_are_decoded_if_pillow_has_their_codec(encode, file_format):
    if file_format not in formats.readable_formats():
        pytest.skip(f"this Pillow has no {file_format}")
    plain = decode_crop(encode(3, (70, 50)), 32)
    options = {"quality": 100, "subsampling": "4:4:4"} if file_format == "AVIF" else {"irreversible": False}
    assert np.abs(decode_crop(encode(3, (70, 50), file_format, **options), 32).astype(int) - plain).max() <= 8


@pytest.mark.parametrize(("file_format", "feature"), [("AVIF", "avif"), ("JPEG2000", "jpg_2000"), ("WEBP", "webp")])
def test_a_format_without_its_codec_is_named(encode, monkeypatch, file_format, feature):
    data = encode(3, (70, 50), file_format)
    check = formats.PIL.features.check
    monkeypatch.setattr(formats.PIL.features, "check", lambda name: name != feature and check(name))
    formats.readable_formats.cache_clear()
    try:
        with pytest.raises(BadImageError, match=f"its format is {file_format}, which this installation of Pillow can"):
            decode_crop(data, 32)
        assert decode_crop(PHOTOGRAPH, 32).shape == (32, 32, 3)
    finally:
        formats.readable_formats.cache_clear()


def test_a_codec_of_tiff_that_is_missing_is_not_damage(encode, monkeypatch):
    data = encode(3, (70, 50), "TIFF", compression="tiff_lzw")
    monkeypatch.delattr(PIL.Image.core, "libtiff_decoder")
    with pytest.raises(BadImageError, match=r"a TIFF of a kind that Pillow does not decode .decoder libtiff not"):
        decode_crop(data, 32)


def brands(major: bytes, *compatible: bytes) -> bytes:
    content = b"ftyp" + major + bytes(4) + b"".join(compatible)
    return (len(content) + 4).to_bytes(4) + content + bytes(500)


OTHERS = {
    "HEIC": [brands(b"heic", b"mif1", b"heic"), brands(b"mif1", b"mif1", b"heic", b"miaf"), brands(b"msf1", b"hevc")],
    "HEIF": [brands(b"mif1", b"miaf")],
    "MP4 video": [brands(b"isom", b"mp41")],
    "JPEG XL": [b"\xff\x0a" + bytes(99), b"\0\0\0\x0cJXL \r\n\x87\n"],
    "ICO": [b"\0\0\1\0\1\0" + bytes(99)],
    "Photoshop": [b"8BPS\0\1" + bytes(99)],
    "PDF": [b"%PDF-1.7\n"],
    "SVG": [b"<svg xmlns='http://www.w3.org/2000/svg'/>"],
    "Git LFS pointer, not the file itself": [b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"],
    "zip archive": [b"PK\x03\x04" + bytes(99)],
    "AVI video": [b"RIFF\0\0\1\0AVI LIST"],
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_file_in_another_format_is_quarantined_with_its_true_format(name):
    for data in OTHERS[name]:
        with pytest.raises(BadImageError, match=f"^its format is {name}; expected one of JPEG"):
            decode_crop(data, 32)


def test_a_damaged_avif_is_not_taken_for_another_format():
    with pytest.raises(BadImageError, match="its AVIF header is truncated or damaged"):
        decode_crop(brands(b"avif", b"mif1"), 32)


def test_a_jpeg_2000_with_fewer_than_8_bits_is_refused(encode):
    data = bytearray(encode(3, (70, 50), "JPEG2000", "L"))
    depth = data.index(b"\xff\x4f\xff\x51") + 42
    assert data[depth] == 7  # bits minus 1
    data[depth] = 3
    with pytest.raises(BadImageError, match="it is a JPEG2000 with 4 bits; expected at least 8"):
        decode_crop(bytes(data), 32)


def palette_with_several_alphas() -> bytes:
    image = PIL.Image.open(IMAGES / "palette.png")
    file = io.BytesIO()
    image.save(file, "PNG", transparency=bytes(range(200)))
    return file.getvalue()


def jpeg_with_damaged_exif() -> bytes:
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01\x1a\0\x05\0\0\0\x01\0\0\xff\xff"
    return PHOTOGRAPH[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + PHOTOGRAPH[20:]


def large_png() -> bytes:
    file = io.BytesIO()
    PIL.Image.new("1", (9_500, 9_500)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("make", [palette_with_several_alphas, jpeg_with_damaged_exif])
def test_pillows_warnings_do_not_leak(make):
    data = make()
    with warnings.catch_warnings(record=True) as before:
        warnings.simplefilter("always")
        with PIL.Image.open(io.BytesIO(data)) as image:
            image.convert("RGB")
            image.getexif()
    assert before, "the image was meant to make Pillow warn"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode_crop(data, 32).shape == (32, 32, 3)


def test_a_large_image_causes_no_warning():
    data = png_of_size(9_500, 9_500)
    with pytest.warns(PIL.Image.DecompressionBombWarning):
        PIL.Image.open(io.BytesIO(data)).close()
    with pytest.raises(BadImageError, match="its PNG data is truncated"), warnings.catch_warnings():
        warnings.simplefilter("error")
        decode_crop(data, 32)


def test_warnings_of_other_modules_are_not_suppressed():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decode_crop(DRAWING, 32)
        with pytest.raises(UserWarning, match="ours"):
            warnings.warn("ours", stacklevel=1)


def test_threads_decode_to_the_same_pixels():
    images = [PHOTOGRAPH, DRAWING, (IMAGES / "cmyk.jpg").read_bytes(), (IMAGES / "palette.png").read_bytes()]
    expected = [decode_crop(data, 64) for data in images]
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda data: decode_crop(data, 64), images * 8))
    for number, crop in enumerate(found):
        np.testing.assert_array_equal(crop, expected[number % 4])
