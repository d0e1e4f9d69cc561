"""Entries for any timm network that gives a grid of tokens: plain vision transformers and hierarchical networks."""

import difflib
import inspect
from typing import Any

import torch

from ...errors import ConfigError
from ..weight_files import WeightsSource
from .entry import EncoderEntry
from .preprocessing import Preprocessing
from .weights import TimmWeights, create_on_meta


def timm_entry(model_name: str) -> EncoderEntry:
    """Describe a timm network as an encoder, from its architecture and its pretrained configuration.

    A plain transformer gives the tokens of its last block after the final norm; a hierarchical network those of its
    deepest feature map with no more than 16 input pixels a side and token. Images are resized as timm's own
    evaluation does: antialiased, before the normalization. Raises ConfigError for a network that timm lacks or that
    has no feature maps.
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
        image_size=_only_size(model),
        preprocessing=Preprocessing(
            mean=tuple(config["mean"]),
            std=tuple(config["std"]),
            resize="before",
            interpolation="bilinear" if config["interpolation"] == "bilinear" else "bicubic",
            antialias=True,
        ),
        license=config.get("license") or "not stated",
        verified_by="timm's own network",
        weights=TimmWeights(sources=_sources(config)),
    )


def _create(model_name: str) -> Any:
    import timm

    if not timm.is_model(model_name):
        names = timm.list_models() + timm.list_models(pretrained=True)
        near = difflib.get_close_matches(model_name, names, n=3)
        meant = f"; did you mean {', '.join('timm:' + name for name in near)}?" if near else ""
        raise ConfigError(f"timm {timm.__version__} has no model {model_name!r}{meant}")
    try:
        return create_on_meta(model_name, {}).eval()
    except Exception as error:  # an unknown tag of weights, or a network that needs options
        raise ConfigError(f"timm cannot build {model_name!r}: {' '.join(str(error).split())[:300]}") from error


def _reductions(model_name: str, model: Any) -> list[int]:
    """Return the input pixels a side that one vector of each block or feature map stands for."""
    info = getattr(model, "feature_info", [])
    stages = info if isinstance(info, list) else info.info
    if not hasattr(model, "forward_intermediates") or not stages:
        raise ConfigError(f"timm:{model_name} gives no feature maps, so it has no patch tokens: choose another model")
    return [stage["reduction"] for stage in stages]


def _width(model_name: str, model: Any, index: int, norm: bool) -> int:
    """Return the width of a feature map: timm's own figure leaves out what a final norm may project."""
    size = int(model.pretrained_cfg["input_size"][-1])
    pixels = torch.empty(1, 3, size, size, device="meta")
    try:
        with torch.no_grad():
            features = model.forward_intermediates(pixels, indices=[index], norm=norm, intermediates_only=True)[0]
    except Exception as error:  # audio and video networks, and those that run on no meta tensors
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"timm:{model_name} gives no feature map of images of {size} pixels ({reason}): choose another model"
        ) from error
    return int(features.shape[1])


def _has_cls_token(model: Any) -> bool:
    """Say whether prefix tokens come with the patch tokens, and are more than registers."""
    given = "return_prefix_tokens" in inspect.signature(model.forward_intermediates).parameters
    return given and getattr(model, "num_prefix_tokens", 0) > getattr(model, "num_reg_tokens", 0)


def _only_size(model: Any) -> int | None:
    """Return the input size of a network that takes no other."""
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
