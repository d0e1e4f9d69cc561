"""Images of folders are evaluated as they are, or refused with the reason."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from repa_pipe.errors import BadImageError
from repa_pipe.pipeline.artifacts.images import open_images
from repa_pipe.pipeline.artifacts.plain_images import BITS_IN_FILE, decode_plain

SIDE = 16


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


def file_of(image, kind="png", **options):
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def with_alpha(pixels, mode="RGBA", lowest=255):
    image = Image.fromarray(pixels).convert("RGB" if mode == "RGBA" else "L")
    alpha = np.full((SIDE, SIDE), 255, np.uint8)
    alpha[3, 4] = lowest
    image.putalpha(Image.fromarray(alpha))
    assert image.mode == mode
    return image


def palette(pixels):
    return Image.fromarray(pixels).quantize(16)


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "RGBA", "LA"])
def test_opaque_8_bit_images_keep_their_colors(pixels, mode):
    image = Image.fromarray(pixels)
    if mode == "P":
        image = palette(pixels)
    elif mode.endswith("A"):
        image = with_alpha(pixels, mode)
    else:
        image = image.convert(mode)
    np.testing.assert_array_equal(decode_plain(file_of(image), SIDE, False), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize(
    "make",
    [
        lambda pixels: file_of(with_alpha(pixels, lowest=254)),
        lambda pixels: file_of(with_alpha(pixels, "LA", lowest=0)),
        lambda pixels: file_of(with_alpha(pixels, lowest=0), "webp", lossless=True),
        lambda pixels: file_of(with_alpha(pixels, lowest=0), "tiff"),
        lambda pixels: file_of(palette(pixels), transparency=0),
        lambda pixels: file_of(Image.fromarray(pixels), transparency=tuple(map(int, pixels[0, 0]))),
    ],
    ids=["rgba", "la", "webp", "tiff", "palette", "color key"],
)
def test_images_with_transparent_pixels_are_refused(pixels, make):
    with pytest.raises(BadImageError, match="transparent pixels"):
        decode_plain(make(pixels), SIDE, False)


def deep_png():
    """Return an RGB image of 16 bits per channel, which Pillow cannot write."""
    import struct
    import zlib

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = b"".join(b"\0" + bytes(6 * SIDE) for _ in range(SIDE))
    header = struct.pack(">IIBBBBB", SIDE, SIDE, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "bits"),
    [
        (lambda: file_of(Image.fromarray(np.zeros((SIDE, SIDE), np.uint16))), 16),
        (deep_png, 16),
        (lambda: file_of(Image.fromarray(np.zeros((SIDE, SIDE), np.int32)), "tiff"), 32),
        (lambda: file_of(Image.fromarray(np.zeros((SIDE, SIDE), np.uint16)), "tiff"), 16),
        (lambda: file_of(Image.fromarray(np.zeros((SIDE, SIDE), np.uint16)), "jpeg2000"), 16),
        (lambda: f"P6 {SIDE} {SIDE} 65535\n".encode() + bytes(6 * SIDE * SIDE), 16),
        (lambda: f"P5 {SIDE} {SIDE} 65535\n".encode() + bytes(2 * SIDE * SIDE), 16),
    ],
    ids=["gray png", "rgb png", "integers", "gray tiff", "jpeg 2000", "ppm", "pgm"],
)
def test_images_of_more_than_8_bits_are_refused(data, bits):
    with pytest.raises(BadImageError, match=f"{bits} bits per channel"):
        decode_plain(data(), SIDE, False)


def test_the_bits_of_an_avif_are_those_of_its_configuration(pixels):
    data = bytearray(file_of(Image.fromarray(pixels), "avif"))
    decode_plain(bytes(data), SIDE, True)
    flags = data.find(b"av1C") + 6
    for value, bits in ((0x00, 8), (0x40, 10), (0x60, 12)):
        data[flags] = value | (data[flags] & 0x1F)
        assert BITS_IN_FILE["AVIF"](bytes(data)) == bits


def test_the_size_of_a_png_with_more_text_than_pillow_reads_is_checked(pixels):
    text = PngInfo()
    text.add_text("comment", "x" * 2_000_000, zip=True)
    large = file_of(Image.fromarray(pixels).resize((2 * SIDE, 2 * SIDE)), pnginfo=text)
    with pytest.raises(BadImageError, match="32 x 32 pixels"):
        decode_plain(large, SIDE, False)
    transparent = file_of(with_alpha(pixels, lowest=0), pnginfo=text)
    with pytest.raises(BadImageError, match="transparent"):
        decode_plain(transparent, SIDE, False)


@pytest.mark.parametrize("size", [(SIDE, SIDE + 1), (2 * SIDE, 2 * SIDE)])
def test_images_of_another_size_are_scaled_only_on_request(size):
    data = file_of(Image.new("RGB", size, (1, 2, 3)))
    with pytest.raises(BadImageError, match=f"{size[0]} x {size[1]} pixels, the first image 16 x 16: pass --resize 16"):
        decode_plain(data, SIDE, False)
    np.testing.assert_array_equal(decode_plain(data, SIDE, True), np.full((SIDE, SIDE, 3), (1, 2, 3), np.uint8))


def test_damaged_images_are_refused_with_the_reason_of_the_decoder(pixels):
    for data in (b"", b"text", file_of(Image.fromarray(pixels))[:200]):
        with pytest.raises(BadImageError):
            decode_plain(data, SIDE, False)


def test_labels_do_not_matter_to_images_that_are_evaluated(tmp_path, pixels):
    images = [{"bytes": file_of(Image.fromarray(pixels))}] * 3
    pq.write_table(pa.table({"img": images, "fine": [0, 1, 2], "coarse": [0, 0, -1]}), tmp_path / "a.parquet")
    found = open_images(str(tmp_path), 2)
    assert (found.count, found.side) == (3, SIDE)
    assert all(np.array_equal(image, pixels) for block in found.blocks for image in block)


def test_files_that_are_not_evaluated_are_named(tmp_path, pixels, caplog):
    (tmp_path / "0").mkdir()
    for name in ("0/a.png", "b.png"):
        (tmp_path / name).write_bytes(file_of(Image.fromarray(pixels)))
    (tmp_path / "notes.txt").touch()
    assert open_images(str(tmp_path), 2).count == 2
    assert "skipped 1 file: ending .txt (1, such as notes.txt)" in caplog.text
