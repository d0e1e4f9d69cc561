"""The autoencoders of diffusers whose latents are a grid of an image, and what their configs say about the latents.

Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ..converter import shown
from ..errors import WeightsError

KL = "AutoencoderKL"  # of configs that name no class


@dataclass(frozen=True, slots=True)
class AutoencoderClass:
    """How a class of autoencoders states its latents.

    Attributes:
        channels: entries of the config that may state the number of channels; the first one that is not None counts.
        default_channels: the number of a config without them.
        levels: the entry that has one item per level of resolution.
        default_levels: their number in a config without it.
        default_scale: `scaling_factor` of a config without it.
        output: the attribute of the encoder's output: a distribution, or latents that have none.
        all_levels_halve: whether every level halves the sides; else all but the last one.
        has_frames: whether images are videos of one frame for it.
    """

    channels: tuple[str, ...]
    default_channels: int
    levels: str
    default_levels: int
    default_scale: float
    output: Literal["latent_dist", "latent", "latents"]
    all_levels_halve: bool = False
    has_frames: bool = False

    @property
    def is_fixed(self) -> bool:
        """Whether latents are not drawn from a distribution."""
        return self.output != "latent_dist"

    def num_channels(self, config: Mapping[str, Any]) -> int:
        """Return the number of channels of the latents."""
        stated = [config[name] for name in self.channels if config.get(name) is not None]
        return int(stated[0]) if stated else self.default_channels

    def downsampling(self, config: Mapping[str, Any]) -> int:
        """Return how many pixels one pixel of the latents stands for, along each side."""
        levels = len(config[self.levels]) if self.levels in config else self.default_levels
        return int(2 ** (levels if self.all_levels_halve else levels - 1))


# Latents are (z - shift_factor) · scaling_factor, or (z - latents_mean) / latents_std · scaling_factor, in diffusers'
# StableDiffusionPipeline (KL, asymmetric, tiny), SanaPipeline (DC), LDMSuperResolutionPipeline (VQ), QwenImagePipeline.
CLASSES: dict[str, AutoencoderClass] = {
    KL: AutoencoderClass(("latent_channels",), 4, "block_out_channels", 1, 0.18215, "latent_dist"),
    "AsymmetricAutoencoderKL": AutoencoderClass(
        ("latent_channels",), 4, "down_block_out_channels", 1, 0.18215, "latent_dist"
    ),
    "AutoencoderDC": AutoencoderClass(("latent_channels",), 32, "encoder_block_out_channels", 6, 1.0, "latent"),
    "AutoencoderTiny": AutoencoderClass(("latent_channels",), 4, "encoder_block_out_channels", 4, 1.0, "latents"),
    "VQModel": AutoencoderClass(("vq_embed_dim", "latent_channels"), 3, "block_out_channels", 1, 0.18215, "latents"),
    "AutoencoderKLQwenImage": AutoencoderClass(
        ("z_dim",), 16, "temperal_downsample", 3, 1.0, "latent_dist", all_levels_halve=True, has_frames=True
    ),
}


def class_of(config: Mapping[str, Any], where: str) -> tuple[str, AutoencoderClass]:
    """Return the name and the description of a config's class; WeightsError for others, whose latents are no grid."""
    name = config.get("_class_name", KL)
    if not isinstance(name, str) or name not in CLASSES:
        raise WeightsError(
            f"{where}: expected an autoencoder of diffusers whose latents are a grid of an image "
            f"({', '.join(CLASSES)}), found {shown(name)}"
        )
    return name, CLASSES[name]
