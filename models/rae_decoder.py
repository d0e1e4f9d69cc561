"""Decoders of encoder tokens, as RAE and RAEv2 train them (arXiv 2510.11690 and 2605.18324).

The network is diffusers' `RAEDecoder`. Differences to the published program are corrected here: diffusers computes a
position table that is right for 16x16 tokens only, while the published one is in the decoder's file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import WeightsError
from .layers.embedders import sincos_position_embedding, unpatchify

_TABLE = "decoder_pos_embed"
# Names of the projections in RAE's own files, and in diffusers'
_TO = {"query": "to_q", "key": "to_k", "value": "to_v"}


class RaeDecoder(nn.Module):
    """Maps tokens on their grid, [B, C, h, w] as the encoder gives them, to images.

    Args:
        sizes: arguments of diffusers' `RAEDecoder`: `hidden_size`, `decoder_hidden_size`, `decoder_num_hidden_layers`,
            `decoder_num_attention_heads`, `decoder_intermediate_size`, `num_patches`, `patch_size`, …
        image_mean: what the published program adds to the decoder's output per color; (0, 0, 0) in RAEv2.
        image_std: what it multiplies the output with; (1, 1, 1) in RAEv2.
    """

    image_mean: Tensor
    image_std: Tensor

    def __init__(self, sizes: Mapping[str, Any], image_mean: Sequence[float], image_std: Sequence[float]) -> None:
        super().__init__()
        from diffusers.models.autoencoders.autoencoder_rae import RAEDecoder

        network: Any = RAEDecoder(**sizes)
        table: Tensor = network.decoder_pos_embed
        grid = round((table.shape[1] - 1) ** 0.5)
        patches = sincos_position_embedding(table.shape[2], grid)
        network.decoder_pos_embed = torch.cat([torch.zeros_like(patches[:, :1]), patches], dim=1)
        self.network: Any = network
        for name, values in (("image_mean", image_mean), ("image_std", image_std)):
            self.register_buffer(name, torch.tensor(values).reshape(1, -1, 1, 1), persistent=False)

    @property
    def width(self) -> int:
        """Width of the tokens that it decodes."""
        return int(self.network.decoder_embed.in_features)

    def load(self, published: Mapping[str, Tensor], where: str) -> None:
        """Load the tensors of a decoder file strictly, under RAE's or diffusers' names.

        Args:
            published: tensors by name. Those of an autoencoder's other parts are ignored.
            where: the file, for errors.

        Raises:
            WeightsError: names or shapes belong to another decoder.
        """
        tensors = {name: value for key, value in published.items() if (name := _diffusers_name(key))}
        expected = self.network.state_dict()
        if _TABLE in tensors:  # in RAE's own files; diffusers does not store it
            expected[_TABLE] = self.network.decoder_pos_embed
        problems = [f"{name} is missing" for name in expected if name not in tensors]
        problems += [f"{name} is unexpected" for name in tensors if name not in expected]
        problems += [
            f"{name} has another shape (expected {list(value.shape)}, found {list(tensors[name].shape)})"
            for name, value in expected.items()
            if name in tensors and tensors[name].shape != value.shape
        ]
        if problems:
            more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
            raise WeightsError(f"{where} does not fit this decoder: {problems[0]}{more}")
        if _TABLE in tensors:
            self.network.decoder_pos_embed = tensors.pop(_TABLE).float()
        self.network.load_state_dict(tensors)

    def logits(self, tokens: Tensor) -> Tensor:
        """Return patches [B, N, p * p * 3] of tokens [B, N, C]; another grid than the decoder's is resampled."""
        found: Tensor = self.network(tokens, drop_cls_token=False, return_dict=False)[0]
        return found

    def forward(self, latents: Tensor) -> Tensor:
        """Return images [B, 3, H, W] of tokens [B, C, h, w]; their range is about 0 to 1, and they are not clamped."""
        patches = self.logits(latents.flatten(2).transpose(1, 2))
        return unpatchify(patches, self.network.patch_size) * self.image_std + self.image_mean


def _diffusers_name(name: str) -> str | None:
    """Return diffusers' name of a tensor of the decoder; None for tensors of the encoder and statistics."""
    if name.startswith(("encoder.", "encoder_", "_latents_")):
        return None
    name = name.removeprefix("decoder.")
    attention = re.fullmatch(r"(.+\.attention)\.attention\.(query|key|value)\.(.+)", name)
    if attention:
        return f"{attention[1]}.{_TO[attention[2]]}.{attention[3]}"
    return name.replace(".attention.output.dense.", ".attention.to_out.0.")
