"""Checkpoints in REPA's format: by name, downloaded once, or from a file.

A file holds either `{"model", "ema", "opt", "args", "steps"}`, as saved by REPA's trainer, or the EMA weights alone, as
the released model does. Neither records the latents, which are those of Stability's VAE at scale 0.18215.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...config import TrainConfig
from ...errors import CheckpointError, WeightsError
from ...stores.files import atomic_write
from ..runtime.cache import VARIABLE, cache_folder

if TYPE_CHECKING:
    from torch import Tensor

    from ...models.sit import SiT

logger = logging.getLogger(__name__)

VAE = "sd-vae-ft-ema"  # the one with which REPA's generator decodes
LATENTS_SCALE = 0.18215  # scale of Stability's VAEs in REPA's trainer; the bias is 0


@dataclass(frozen=True, slots=True)
class Published:
    """A released checkpoint."""

    url: str
    sha256: str | None  # None if its authors have not published it


# The address is that of `download_model` in REPA's utils.py.
PUBLISHED = {
    "repa-sit-xl-2-256": Published(
        "https://www.dl.dropboxusercontent.com/scl/fi/cxedbs4da5ugjq5wg3zrg/last.pt"
        "?rlkey=8otgrdkno0nd89po3dpwngwcc&st=apcc645o&dl=0",
        None,
    )
}


def find_published(name: str) -> Path:
    """Return the path of a released checkpoint, downloaded if necessary; raise WeightsError when that fails."""
    entry = PUBLISHED[name]
    path = cache_folder("checkpoints") / f"{name}.pt"
    if path.exists():
        return path
    import torch

    logger.info("downloading %s from %s to %s", name, entry.url, path)
    try:
        with atomic_write(path) as temporary:
            torch.hub.download_url_to_file(entry.url, str(temporary), hash_prefix=entry.sha256)
    except (OSError, RuntimeError) as error:
        raise WeightsError(
            f"{name} is not at {path} and could not be downloaded ({error}): download {entry.url} on a machine with a "
            f"network and put it there (${VARIABLE} sets another folder), or pass its path as --checkpoint"
        ) from None
    return path


def is_published(values: Mapping[str, Any]) -> bool:
    """Return whether `values` are the contents of a file in REPA's format."""
    return "sit" not in values and ("ema" in values or "x_embedder.proj.weight" in values)


def published_model(values: Mapping[str, Any], ema: bool, path: Path) -> tuple[SiT, TrainConfig, int]:
    """Build the model of a file in REPA's format.

    Args:
        values: the contents of the file.
        ema: whether to load the EMA weights.
        path: the file, for error messages.

    Returns:
        The model, the settings of its training as far as they are known, and its step (0 if not recorded).

    Raises:
        CheckpointError: the file does not hold a SiT, or only EMA weights if `ema` is false.
    """
    from ...models.sit import SiT, infer_sit_config, load_sit_state

    weights: Mapping[str, Tensor] = values.get("ema" if ema else "model", {})
    if "x_embedder.proj.weight" in values:
        weights = values if ema else {}
    if not weights:
        raise CheckpointError(f"{path} holds EMA weights only: remove --no-ema")
    args = vars(values["args"]) if "args" in values else {}
    try:
        model = SiT(infer_sit_config(weights, args.get("encoder_depth")))
        load_sit_state(model, weights)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    config = TrainConfig(store="", vae=VAE, path_type=args.get("path_type", "linear"))
    return model, config, int(values.get("steps", 0))
