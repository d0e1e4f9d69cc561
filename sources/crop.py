"""The center crop that ImageNet diffusion models are trained on."""

import numpy as np
import PIL.Image

from ..errors import BadImageError, ConfigError

MAX_PIXELS = 178_956_970
"""No step of reading one image holds more pixels than this (Pillow's own limit for a decompression bomb)."""


def center_crop(image: PIL.Image.Image, size: int) -> np.ndarray:
    """Crop the middle square of an image after scaling its shorter side to `size`.

    ADM's crop (guided-diffusion, `image_datasets.py`), on the image converted to RGB as in REPA's
    `dataset_tools.py convert --transform=center-crop-dhariwal`: halve with a box filter while the shorter side
    is at least twice `size`, scale bicubically, cut out the middle. EXIF rotation, ICC profiles and alpha are
    ignored, as there.

    Returns uint8 [size, size, 3]. Raises BadImageError where the image is so narrow that the scaled one would
    exceed MAX_PIXELS.
    """
    if size < 1:
        raise ConfigError(f"the crop's size is {size}: expected at least 1 pixel")
    if min(image.size) < 1:
        raise BadImageError(f"{image.width} x {image.height} pixels: nothing to crop")
    if image.mode != "RGB":
        image = image.convert("RGB")
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
