from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from repa_pipe.errors import BadImageError, ConfigError
from repa_pipe.sources import center_crop

REFERENCE = Path(__file__).parents[1] / "reference" / "center_crop"
FIGURES = ["landscape.png", "gray.png", "rgba.png", "palette.png", "tiny.png"]
JPEG_FIGURES = ["portrait_large.jpg", "cmyk.jpg", "exif_rotated.jpg"]

sides = st.integers(1, 300)
sizes = st.integers(1, 96)


def crop_of(name: str) -> tuple[np.ndarray, np.ndarray]:
    with np.load(REFERENCE / "expected.npz") as expected, PIL.Image.open(REFERENCE / "images" / name) as image:
        return center_crop(image, 256), expected[f"{name}@256"]


@pytest.mark.parametrize("name", FIGURES)
def test_the_crop_equals_the_published_one(name):
    ours, published = crop_of(name)
    np.testing.assert_array_equal(ours, published)


@pytest.mark.parametrize("name", JPEG_FIGURES)
def test_the_crop_of_a_jpeg_is_within_two_levels_of_the_published_one(name):
    ours, published = crop_of(name)
    assert ours.shape == published.shape
    assert np.abs(ours.astype(int) - published).max() <= 2


@settings(max_examples=100, deadline=None)
@given(width=sides, height=sides, size=sizes, color=st.tuples(*[st.integers(0, 255)] * 3))
def test_images_of_any_shape_become_squares_and_plain_colors_are_preserved(width, height, size, color):
    crop = center_crop(PIL.Image.new("RGB", (width, height), color), size)
    assert crop.dtype == np.uint8
    np.testing.assert_array_equal(crop, np.broadcast_to(np.array(color, np.uint8), (size, size, 3)))


@settings(max_examples=50, deadline=None)
@given(longer=sides, size=sizes, upright=st.booleans(), seed=st.integers(0, 99))
def test_an_image_whose_shorter_side_fits_is_only_cropped(longer, size, upright, seed):
    shape = (max(longer, size), size) if upright else (size, max(longer, size))
    pixels = np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)
    top, left = (shape[0] - size) // 2, (shape[1] - size) // 2
    expected = pixels[top : top + size, left : left + size]
    np.testing.assert_array_equal(center_crop(PIL.Image.fromarray(pixels), size), expected)


@settings(max_examples=25, deadline=None)
@given(size=st.integers(1, 40), halvings=st.integers(1, 3), seed=st.integers(0, 99))
def test_power_of_two_multiples_are_halved_by_averaging(size, halvings, seed):
    side = size << halvings
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side), np.uint8)
    expected = pixels.astype(float)
    for _ in range(halvings):
        half = len(expected) // 2
        expected = np.floor(expected.reshape(half, 2, half, 2).mean((1, 3)) + 0.5)
    crop = center_crop(PIL.Image.fromarray(pixels), size)
    # Pillow halves one direction, rounds, then halves the other: rounding adds up to one level each time.
    assert np.abs(crop[..., 0] - expected).max() <= halvings
    np.testing.assert_array_equal(crop[..., 0], crop[..., 2])


def test_a_very_narrow_image_is_refused_before_memory_is_allocated():
    with pytest.raises(BadImageError, match=r"1 x 60000 pixels: too narrow to crop at 256.*3,932,160,000 pixels"):
        center_crop(PIL.Image.new("L", (1, 60_000)), 256)


def test_an_image_without_pixels_is_refused():
    with pytest.raises(BadImageError, match="0 x 5 pixels"):
        center_crop(PIL.Image.new("RGB", (0, 5)), 8)


@pytest.mark.parametrize("size", [0, -1])
def test_a_size_below_one_is_refused(size):
    with pytest.raises(ConfigError, match="at least 1 pixel"):
        center_crop(PIL.Image.new("RGB", (5, 5)), size)
