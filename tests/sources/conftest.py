"""Images and folder trees for the tests of sources."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

Encode = Callable[..., bytes]


def encode(
    seed: int = 0, size: tuple[int, int] = (40, 30), file_format: str = "PNG", mode: str = "RGB", **options: object
) -> bytes:
    """A small image file with random colors."""
    width, height = size
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).convert(mode).save(file, file_format, **options)
    return file.getvalue()


@pytest.fixture(name="encode")
def encode_fixture() -> Encode:
    return encode


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Class folders with all difficulties that torchvision accepts."""
    root = tmp_path / "träin"
    names = [
        "n02/b.JPEG",
        "n02/a.jpg",
        "n02/sub/z.png",
        "n02/sub/deeper/y.PnG",
        "n02/sub-1/x.webp",
        "n02/notes.txt",
        "n02/B.JpG",
        "n02/10.png",
        "n02/9.png",
        "n02-x/w.png",
        "N01/ü.png",
        "N01/日本.tiff",
        "N01/a b.bmp",
        "N01/.hidden.png",
        "N01/.png",
        "n10/1.ppm",
        "n10/not an image.jpg.txt",
        "n10/1.gif",
    ]
    for seed, name in enumerate(names):
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encode(seed, (8 + seed, 9)))
    (root / "on top.png").write_bytes(b"ignored, since it is not in a class folder")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "linked.png").write_bytes(encode(99))
    (root / "n10" / "folder").symlink_to(elsewhere)
    (root / "n10" / "0.png").symlink_to(elsewhere / "linked.png")
    (root / "n30").symlink_to(elsewhere)
    return root
