"""Small files that would take their decoder minutes, or gigabytes of memory."""

import functools
import io
import itertools
import struct
import zlib
from collections.abc import Callable

import numpy as np
import PIL.Image

SIDE = 64


def encoded(file_format: str, side: int = SIDE, **options) -> bytes:
    file = io.BytesIO()
    PIL.Image.new("RGB", (side, side), (10, 20, 30)).save(file, file_format, **options)
    return file.getvalue()


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, depth: int, color: int, pixels: bytes, *chunks: bytes) -> bytes:
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + b"".join([header, *chunks, png_chunk(b"IDAT", pixels), png_chunk(b"IEND", b"")])


@functools.cache
def deflated_zeros(count: int) -> bytes:
    stream, block = zlib.compressobj(1), bytes(1 << 20)
    parts = [stream.compress(block[: min(len(block), count - start)]) for start in range(0, count, len(block))]
    return b"".join(parts) + stream.flush()


SMALL_PNG_PIXELS = zlib.compress(bytes(SIDE * (3 * SIDE + 1)))


def png_of_50_000_by_50_000() -> bytes:
    return png(50_000, 50_000, 1, 0, deflated_zeros(50_000 * 6251))


def png_with_many_chunks() -> bytes:
    return png(SIDE, SIDE, 8, 2, SMALL_PNG_PIXELS, png_chunk(b"abCd", b"") * 300_000)


def jpeg_of_60_000_by_60_000() -> bytes:
    data = encoded("JPEG")
    size = data.index(b"\xff\xc0") + 5
    return data[:size] + struct.pack(">HH", 60_000, 60_000) + data[size + 4 :]


def jpeg_with_scans(side: int, more: int) -> bytes:
    """A progressive JPEG whose last scan is repeated."""
    data = encoded("JPEG", side, progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * more + data[-2:]


def jpeg_with_exif(parts: int) -> bytes:
    data = encoded("JPEG")
    return data[:2] + (b"\xff\xe1" + struct.pack(">H", 1008) + b"Exif\0\0" + bytes(1000)) * parts + data[2:]


def jpeg_with_padding() -> bytes:
    data = encoded("JPEG")
    return data[:2] + b"\xff" * 5_000_000 + data[2:]


def gif_of_blocks() -> bytes:
    start = b"GIF89a" + struct.pack("<HHBBB", SIDE, SIDE, 0x80, 0, 0) + bytes(6)
    return (
        start + b"!\xfe\x01a\0" * 500_000 + b"," + struct.pack("<HHHHB", 0, 0, SIDE, SIDE, 0) + b"\x02\x02\x4c\x01\0;"
    )


def gif_with_frames(count: int) -> bytes:
    data = encoded("GIF")
    frame = data.index(b",", 13 + 3 * 2 ** (1 + (data[10] & 7)))
    return data[:frame] + data[frame:-1] * count + b";"


def ppm_with_comments() -> bytes:
    return b"P2\n64 64 255\n" + b"#a\n" * 1_000_000


def ppm_header_of_comments() -> bytes:
    return b"P5\n" + b"#a\n" * 1_000_000 + b"64 64 255\n" + bytes(SIDE * SIDE)


def bmp_in_runs(length: int) -> bytes:
    data = b"\1\0" * (length // 2)
    sizes = struct.pack("<IiiHHIIiiII", 40, 4096, 4096, 1, 8, 1, len(data), 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 1078 + len(data), 0, 0, 1078) + sizes + bytes(1024) + data


def tiff(tags: dict[int, tuple[int, int, int]], data: bytes) -> bytes:
    """A TIFF of one page; tags are (type, count, value), and a value of -1 is the position of the data."""
    start = 8 + 2 + 12 * len(tags) + 4
    entries = [(tag, kind, count, start if value < 0 else value) for tag, (kind, count, value) in sorted(tags.items())]
    packed = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + packed + bytes(4) + data


def tiff_with_tile(side: int) -> bytes:
    data = deflated_zeros(1 << 20)
    values = {256: SIDE, 257: SIDE, 258: 8, 259: 8, 262: 1, 277: 1, 322: side, 323: side, 324: -1, 325: len(data)}
    return tiff({tag: (4, 1, value) for tag, value in values.items()}, data)


def jpeg2000(change: Callable[[bytearray], None], side: int = 1024, **options) -> bytes:
    """A JPEG 2000 whose coding style is changed; the bytes of the style start behind its length."""
    data = bytearray(encoded("JPEG2000", side, no_jp2=True, **options))
    start = data.index(b"\xff\x52")
    style = data[start + 4 : start + 2 + int.from_bytes(data[start + 2 : start + 4])]
    rest = data[start + 4 + len(style) :]
    change(style)
    return bytes(data[: start + 2] + struct.pack(">H", len(style) + 2) + style + rest)


def jpeg2000_in_precincts(side: int = 1024) -> bytes:
    """Precincts of 2 x 2 pixels at each of six resolutions."""

    def change(style: bytearray) -> None:
        style[0] |= 1
        style += b"\x11" * 6

    return jpeg2000(change, side)


def jpeg2000_in_blocks() -> bytes:
    def change(style: bytearray) -> None:
        style[6:8] = b"\0\0"  # 4 x 4 pixels

    return jpeg2000(change, 2048)


def jpeg2000_in_layers() -> bytes:
    """65,535 quality layers in precincts of 8 x 8 pixels."""

    def change(style: bytearray) -> None:
        style[0] |= 1
        style[2:4] = b"\xff\xff"
        style += b"\x33" * 6

    return jpeg2000(change, 256)


def animation(file_format: str, frames: int, **options) -> bytes:
    first, *others = (PIL.Image.new("RGB", (SIDE, SIDE), (number % 256, 0, 0)) for number in range(frames))
    file = io.BytesIO()
    first.save(file, file_format, save_all=True, append_images=others, **options)
    return file.getvalue()


TOO_MANY_PIXELS = "more than 178,956,970"
REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "png of 50,000 x 50,000": (png_of_50_000_by_50_000, TOO_MANY_PIXELS),
    "png with 300,000 chunks": (png_with_many_chunks, "its data is in too many small pieces"),
    "jpeg of 60,000 x 60,000": (jpeg_of_60_000_by_60_000, TOO_MANY_PIXELS),
    "jpeg with 2,000 scans": (lambda: jpeg_with_scans(2048, 2000), "it has more than 100 scans"),
    "jpeg with Exif in 50,000 segments": (lambda: jpeg_with_exif(50_000), "its Exif data is in more than 100 segments"),
    "jpeg with padding": (jpeg_with_padding, "its data is in too many small pieces"),
    "gif with 500,000 blocks": (gif_of_blocks, "its data is in too many small pieces"),
    "ppm with comments between pixels": (ppm_with_comments, "it has more than 1,000 comments"),
    "ppm with a long header": (ppm_header_of_comments, "its data is in too many small pieces"),
    "ppm of text": (lambda: b"P1\n4096 4096\n" + b"1" * (1 << 24), "16,777,229 bytes of pixels as text"),
    "bmp of runs": (lambda: bmp_in_runs(20_000_000), "20,001,078 bytes of run-length encoded pixels"),
    "tiff with a large tile": (lambda: tiff_with_tile(40_000), "its tiles have 1,600,000,000 pixels"),
    "jpeg 2000 in precincts": (jpeg2000_in_precincts, "more than 1,000,000 code blocks and precincts"),
    "jpeg 2000 in code blocks": (jpeg2000_in_blocks, "more than 1,000,000 code blocks and precincts"),
    "jpeg 2000 in layers": (jpeg2000_in_layers, "more than 67,108,864 quality layers of precincts"),
}
"""Files, and why they are refused before any pixel is decoded."""

DECODED: dict[str, Callable[[], bytes]] = {
    "png with 500 MB of text": lambda: png(
        SIDE, SIDE, 8, 2, SMALL_PNG_PIXELS, png_chunk(b"zTXt", b"k\0\0" + deflated_zeros(500 << 20))
    ),
    "png with a profile of 500 MB": lambda: png(
        SIDE, SIDE, 8, 2, SMALL_PNG_PIXELS, png_chunk(b"iCCP", b"k\0\0" + deflated_zeros(500 << 20))
    ),
    "png with 500 MB behind its pixels": lambda: png(SIDE, SIDE, 8, 2, deflated_zeros(500 << 20)),
    "gif with 100,000 frames": lambda: gif_with_frames(100_000),
    "webp with 500 frames": lambda: animation("WEBP", 500),
    "avif with 50 frames": lambda: animation("AVIF", 50, speed=10),
    "jpeg with 100 scans": lambda: jpeg_with_scans(SIDE, 90),
    "jpeg with Exif in 100 segments": lambda: jpeg_with_exif(100),
}
"""Files of which only the part that belongs to the first image is read."""


def noise(seed: int) -> bytes:
    """An honest image."""
    pixels = np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def all_bombs() -> dict[str, bytes]:
    """Return every file of both tables by name."""
    makers = itertools.chain(((name, make) for name, (make, _) in REFUSED.items()), DECODED.items())
    return {name: make() for name, make in makers}
