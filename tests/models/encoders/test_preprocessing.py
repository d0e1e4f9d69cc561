import pytest
import torch

from repa_pipe.models.encoders.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from repa_pipe.models.encoders.registry import find_entry

HALF = (0.5, 0.5, 0.5)


@pytest.mark.parametrize("resize", ["before", "after"])
@pytest.mark.parametrize("size", [32, 28, 64])
def test_white_image_has_the_normalized_value_at_every_size(resize, size):
    white = torch.full((1, 3, 32, 32), 255, dtype=torch.uint8)
    pixels = Preprocessing(mean=IMAGENET_MEAN, std=IMAGENET_STD, resize=resize)(white, size)
    expected = (1 - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)
    assert pixels.shape == (1, 3, size, size)
    torch.testing.assert_close(pixels, expected.view(1, 3, 1, 1).expand_as(pixels))


def test_only_antialiasing_clamps_an_edge_to_the_range_of_an_image():
    edge = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    edge[..., 16:] = 255
    rough = Preprocessing(mean=HALF, std=HALF)(edge, 28)
    smooth = Preprocessing(mean=HALF, std=HALF, resize="before", antialias=True)(edge, 28)
    assert rough.min() < -1
    assert rough.max() > 1
    assert (smooth.min(), smooth.max()) == (-1, 1)


@pytest.mark.parametrize(
    ("name", "first"), [("dinov2-vit-b", "normalise by mean"), ("clip-vit-L", "resize 256 to 224")]
)
def test_description_lists_the_steps_in_order(name, first):
    steps = find_entry(name).preprocessing.describe(256, 224).split("; ")
    assert steps[0] == "divide by 255"
    assert steps[1].startswith(first)


def test_description_omits_resizing_if_the_size_stays():
    assert "resize" not in find_entry("mocov3-vit-b").preprocessing.describe(256, 256)
