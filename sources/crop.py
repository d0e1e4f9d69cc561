"""The center crop on which ImageNet diffusion models are trained."""

import numpy as np
import PIL.Image

from ..errors import BadImageError, ConfigError
from .pixels import to_rgb

MAX_PIXELS = 178_956_970
"""Maximum pixels of an image at any stage of decoding and cropping: Pillow's limit for decompression bombs."""


def center_crop(image: PIL.Image.Image, size: int) -> np.ndarray:
    """Scale the shorter side of an image to `size` and crop the center square.

    This is ADM's crop (guided-diffusion, `image_datasets.py`) of the image converted to RGB, as in REPA's
    `dataset_tools.py convert --transform=center-crop-dhariwal`: halve with a box filter while the shorter side is at
    least twice `size`, scale bicubically, crop the center. As in those programs, EXIF rotation, ICC profiles and alpha
    are ignored.

    Args:
        image: an image in a mode of `sources.pixels.RULES`.
        size: side of the crop in pixels.

    Returns:
        uint8 `[size, size, 3]`.

    Raises:
        BadImageError: the image has no pixels, pixels that cannot be converted to RGB (`sources.pixels.RULES`), or is
            so narrow that it would exceed `MAX_PIXELS` after scaling.
        ConfigError: `size` is smaller than 1.
    """
    if size < 1:
        raise ConfigError(f"crop size: expected at least 1 pixel, found {size}")
    if min(image.size) < 1:
        raise BadImageError(f"{image.width} x {image.height} pixels: nothing to crop")
    image = to_rgb(image)
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), PIL.Image.Resampling.BOX)
    scale = size / min(image.size)
    width, height = round(image.width * scale), round(image.height * scale)
    if width * height > MAX_PIXELS:
        raise BadImageError(
            f"{image.width} x {image.height} pixels: too narrow to crop at {size}, scaling it would take "
            f"{width * height:,} pixels and the limit is {MAX_PIXELS:,}"
        )
    image = image.resize((width, height), PIL.Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return np.array(image.crop((left, top, left + size, top + size)))
