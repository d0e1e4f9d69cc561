"""FDr: Fréchet distances in units of the distance of real images (FD-loss, arXiv 2604.28190)."""

from collections.abc import Mapping
from types import MappingProxyType

# Distances of ImageNet's validation images to its training images at 256 pixels, as `eval_all_fds.py` of
# github.com/Jiawei-Yang/FD-loss (5c03b81) has them. They are rounded, and are used as they stand. Inception's is the
# distance to ADM's statistics.
VALIDATION_FD: Mapping[str, float] = MappingProxyType(
    {
        "inception": 1.68,
        "convnextv2-b-224": 56.87,
        "dinov2-l-256": 14.19,
        "mae-l-224": 0.04,
        "siglip2-so400m-224": 0.60,
        "clip-l-256": 5.60,
    }
)
IMAGE_SIZE = 256  # side in pixels of the images that these are distances of


def relative_distances(
    distances: Mapping[str, float], validation: Mapping[str, float] = VALIDATION_FD
) -> dict[str, float]:
    """Return FDr of the detectors that have a validation distance: the Fréchet distance divided by it."""
    return {name: distances[name] / constant for name, constant in validation.items() if name in distances}


def fdr6(distances: Mapping[str, float], validation: Mapping[str, float] = VALIDATION_FD) -> float | None:
    """Return the mean of FDr over all detectors that have a validation distance; None unless all are there."""
    ratios = relative_distances(distances, validation)
    return sum(ratios.values()) / len(validation) if len(ratios) == len(validation) else None
