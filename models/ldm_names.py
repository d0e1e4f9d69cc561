"""Autoencoders with the names of the latent diffusion code (LDM): Stable Diffusion's files, LightningDiT's VA-VAE.

The config of diffusers follows from the shapes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Protocol

from ..errors import WeightsError


class _Shaped(Protocol):
    @property
    def shape(self) -> Any:
        """The sizes of the axes."""


_PREFIXES = ("first_stage_model.", "vae.", "")
_PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")  # a file may hold more, as of its training
_ANCHOR = "encoder.conv_in.weight"
_SD_CHANNELS, _SD_SCALE = 4, 0.18215  # of Stable Diffusion; files of other autoencoders state no scale

_RENAMED = (
    (re.compile(r"encoder\.down\.(\d+)\.block\."), r"encoder.down_blocks.\1.resnets."),
    (re.compile(r"encoder\.down\.(\d+)\.attn\."), r"encoder.down_blocks.\1.attentions."),
    (re.compile(r"encoder\.down\.(\d+)\.downsample\."), r"encoder.down_blocks.\1.downsamplers.0."),
    (re.compile(r"decoder\.up\.(\d+)\.block\."), r"decoder.up_blocks.\1.resnets."),
    (re.compile(r"decoder\.up\.(\d+)\.attn\."), r"decoder.up_blocks.\1.attentions."),
    (re.compile(r"decoder\.up\.(\d+)\.upsample\."), r"decoder.up_blocks.\1.upsamplers.0."),
    (re.compile(r"\.mid\.block_1\."), ".mid_block.resnets.0."),
    (re.compile(r"\.mid\.block_2\."), ".mid_block.resnets.1."),
    (re.compile(r"\.mid\.attn_1\."), ".mid_block.attentions.0."),
    (re.compile(r"\.nin_shortcut\."), ".conv_shortcut."),
    (re.compile(r"\.norm_out\."), ".conv_norm_out."),
)
_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}


def ldm_tensors(tensors: Mapping[str, Any], path: object) -> dict[str, Any]:
    """Return the tensors of the autoencoder in a file, without the prefix that their names have there.

    Raises:
        WeightsError: the file holds none with such names.
    """
    for prefix in _PREFIXES:
        if f"{prefix}{_ANCHOR}" in tensors and f"{prefix}encoder.down.0.block.0.conv1.weight" in tensors:
            found = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
            return {name: value for name, value in found.items() if name.startswith(_PARTS)}
    raise WeightsError(
        f"{path}: expected an autoencoder with the names of latent diffusion ({_ANCHOR}, encoder.down.0.…); of other "
        "programs, pass the folder that holds config.json and the weights"
    )


def config_from_shapes(tensors: Mapping[str, _Shaped], path: object) -> dict[str, Any]:
    """Return diffusers' config of an AutoencoderKL of these tensors (`ldm_tensors`).

    Raises:
        WeightsError: a tensor is missing, or they belong to another kind of autoencoder.
    """
    try:
        return _config(tensors)
    except (KeyError, IndexError, ValueError) as error:
        raise WeightsError(f"{path}: {error} is missing or malformed: expected an AutoencoderKL") from None


def _config(tensors: Mapping[str, _Shaped]) -> dict[str, Any]:
    levels = range(_count(tensors, r"encoder\.down\.(\d+)\."))
    channels = [int(tensors[f"encoder.down.{level}.block.0.conv1.weight"].shape[0]) for level in levels]
    latent = int(tensors["decoder.conv_in.weight"].shape[1])
    outputs = int(tensors["encoder.conv_out.weight"].shape[0])
    if outputs != 2 * latent:
        raise ValueError(f"an output of {2 * latent} channels of encoder.conv_out ({outputs} found)")
    with_attention = [f"encoder.down.{level}.attn.0.q.weight" in tensors for level in levels]
    return {
        "_class_name": "AutoencoderKL",
        "in_channels": int(tensors[_ANCHOR].shape[1]),
        "out_channels": int(tensors["decoder.conv_out.weight"].shape[0]),
        "block_out_channels": channels,
        "layers_per_block": _count(tensors, r"encoder\.down\.0\.block\.(\d+)\."),
        "down_block_types": ["AttnDownEncoderBlock2D" if each else "DownEncoderBlock2D" for each in with_attention],
        "up_block_types": ["AttnUpDecoderBlock2D" if each else "UpDecoderBlock2D" for each in with_attention[::-1]],
        "latent_channels": latent,
        "mid_block_add_attention": "encoder.mid.attn_1.q.weight" in tensors,
        "use_quant_conv": "quant_conv.weight" in tensors,
        "use_post_quant_conv": "post_quant_conv.weight" in tensors,
        "scaling_factor": _SD_SCALE if latent == _SD_CHANNELS else 1.0,
    }


def _count(tensors: Mapping[str, Any], pattern: str) -> int:
    return len({match[1] for name in tensors if (match := re.match(pattern, name))})


def diffusers_names(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Return tensors of `ldm_tensors` under diffusers' names, with attention as linear layers."""
    levels = _count(tensors, r"decoder\.up\.(\d+)\.")
    renamed = {}
    for name, value in tensors.items():
        current = re.sub(r"decoder\.up\.(\d+)", lambda match: f"decoder.up.{levels - 1 - int(match[1])}", name)
        for pattern, replacement in _RENAMED:
            current = pattern.sub(replacement, current)
        is_attention = ".attentions." in current
        if is_attention:
            head, _, tail = current.rpartition(".attentions.")
            number, part, kind = tail.split(".")
            current = f"{head}.attentions.{number}.{_ATTENTION.get(part, part)}.{kind}"
        renamed[current] = value[:, :, 0, 0] if is_attention and value.ndim == 4 else value
    return renamed
