"""Check of the scale of a store's latents against what was encoded or imported."""

from __future__ import annotations

import logging

from ...stores import Group

logger = logging.getLogger(__name__)

SMALLEST_STD, LARGEST_STD = (
    0.5,
    2.0,
)  # of scaled latents; a VAE's scale is chosen so that it is 1 on its training images


def warn_of_unusual_scale(group: Group) -> None:
    """Log a warning if the scaled latents of a group have a standard deviation far from 1."""
    std = group.latents_std
    if std is not None and not SMALLEST_STD <= std <= LARGEST_STD:
        logger.warning(
            "%s: expected scaled latents with a standard deviation of about 1, found %.3g over %s images (scale %s): "
            "check the scaling_factor of %s, or measure scale and bias with 'repa-pipe store stats … --write'",
            group.path,
            std,
            f"{sum(commit.latents['images'] for commit in group.commits.values() if commit.latents):,}",
            ", ".join(f"{value:g}" for value in dict.fromkeys(group.attributes["scale"])),
            group.attributes.get("vae"),
        )
