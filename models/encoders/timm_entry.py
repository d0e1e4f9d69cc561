"""Entries for any timm network with a grid of tokens: plain vision transformers and hierarchical networks."""

from __future__ import annotations

import difflib
import inspect
from typing import Any

from ...errors import ConfigError
from ..weight_files import WeightsSource
from .entry import EncoderEntry
from .preprocessing import Preprocessing
from .weights import TimmWeights, create_on_meta


def timm_entry(model_name: str) -> EncoderEntry:
    """Describe a timm network as an encoder, from its architecture and its pretrained configuration.

    A plain transformer gives the tokens of its last block after the final norm. A hierarchical network gives its
    deepest feature map whose vectors cover at most 16x16 input pixels. Images are resized as in timm's own evaluation:
    antialiased, before normalization.

    Raises:
        ConfigError: timm has no such network, or the network has no feature maps.
    """
    model = _create(model_name)
    config = model.pretrained_cfg
    reductions = _reductions(model_name, model)
    plain = len(set(reductions)) == 1
    stage = None if plain else max((i for i, r in enumerate(reductions) if r <= 16), default=len(reductions) - 1)
    index = len(reductions) - 1 if stage is None else stage
    return EncoderEntry(
        architecture=model_name,
        width=_width(model_name, model, index, norm=plain),
        patch=reductions[index],
        depth=len(reductions) if plain else None,
        stage=stage,
        has_cls_token=_has_cls_token(model),
        final_norm=plain,
        layer_rule="mean and global" if "_dinov3" in model_name and "eupe" not in model_name else None,
        image_size=_fixed_input_size(model),
        preprocessing=Preprocessing(
            mean=tuple(config["mean"]),
            std=tuple(config["std"]),
            resize="before",
            interpolation="bilinear" if config["interpolation"] == "bilinear" else "bicubic",
            antialias=True,
        ),
        license=config.get("license") or "not stated",
        verified_by="timm's own implementation",
        weights=TimmWeights(sources=_sources(config)),
    )


def _create(model_name: str) -> Any:
    import timm

    if not timm.is_model(model_name):
        names = timm.list_models() + timm.list_models(pretrained=True)
        similar = difflib.get_close_matches(model_name, names, n=3)
        suggestion = f"; did you mean {' or '.join('timm:' + name for name in similar)}?" if similar else ""
        raise ConfigError(f"timm {timm.__version__} has no model {model_name!r}{suggestion}")
    try:
        return create_on_meta(model_name, {}).eval()
    except Exception as error:  # an unknown pretrained tag, or a network that requires options
        raise ConfigError(f"timm cannot build {model_name!r}: {' '.join(str(error).split())[:300]}") from error


def _reductions(model_name: str, model: Any) -> list[int]:
    """Return, per block or feature map, the side of the square of input pixels that one vector covers."""
    info = getattr(model, "feature_info", [])
    stages = info if isinstance(info, list) else info.info
    if not hasattr(model, "forward_intermediates") or not stages:
        raise ConfigError(f"timm:{model_name} has no feature maps, so it has no patch tokens. Choose another model")
    return [stage["reduction"] for stage in stages]


def _width(model_name: str, model: Any, index: int, norm: bool) -> int:
    """Measure the width of a feature map: timm's feature_info ignores the projection of some final norms."""
    import torch

    size = int(model.pretrained_cfg["input_size"][-1])
    pixels = torch.empty(1, 3, size, size, device="meta")
    try:
        with torch.no_grad():
            features = model.forward_intermediates(pixels, indices=[index], norm=norm, intermediates_only=True)[0]
    except Exception as error:  # audio and video networks, and networks that cannot run on the meta device
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"timm:{model_name} gives no feature map for {size}-pixel images ({reason}). Choose another model"
        ) from error
    return int(features.shape[1])


def _has_cls_token(model: Any) -> bool:
    """Return whether the network returns prefix tokens, and not all of them are registers."""
    returned = "return_prefix_tokens" in inspect.signature(model.forward_intermediates).parameters
    return returned and getattr(model, "num_prefix_tokens", 0) > getattr(model, "num_reg_tokens", 0)


def _fixed_input_size(model: Any) -> int | None:
    """Return the only input size that the network accepts, or None if it accepts others."""
    if hasattr(model, "set_input_size") or not model.pretrained_cfg.get("fixed_input_size"):
        return None
    return int(model.pretrained_cfg["input_size"][-1])


def _sources(config: dict[str, Any]) -> tuple[WeightsSource, ...]:
    sources = []
    if config.get("hf_hub_id"):
        file = config.get("hf_hub_filename") or "model.safetensors"
        sources += [WeightsSource(repo=config["hf_hub_id"], file=name) for name in (file, "pytorch_model.bin")]
    if str(config.get("url") or "").endswith((".pth", ".pt", ".bin", ".safetensors", ".tar")):
        sources.append(WeightsSource(url=config["url"]))
    return tuple(sources)
