"""Checkpoints as REPA publishes them: by name, downloaded once, or from a file.

A file is either `{"model", "ema", "opt", "args", "steps"}`, as the published trainer saves it, or the averaged weights
alone, as the released model is. Neither says which latents it was trained on: those of Stability's VAE at 0.18215.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ...config import TrainConfig
from ...errors import CheckpointError, WeightsError
from ...models.sit import SiT, load_sit_state
from ...models.sit.infer_config import infer_sit_config
from ...stores.files import atomic_write
from ..runtime.cache import VARIABLE, cache_folder
from ..runtime.progress import say

VAE = "sd-vae-ft-ema"  # what the published generator decodes with
LATENTS_SCALE = 0.18215  # of Stability's VAEs, as the published trainer has it; bias 0


@dataclass(frozen=True, slots=True)
class Published:
    """A released checkpoint."""

    url: str
    sha256: str | None  # None: its authors do not state it


# The address is that of `download_model` in REPA's utils.py.
PUBLISHED = {
    "repa-sit-xl-2-256": Published(
        "https://www.dl.dropboxusercontent.com/scl/fi/cxedbs4da5ugjq5wg3zrg/last.pt"
        "?rlkey=8otgrdkno0nd89po3dpwngwcc&st=apcc645o&dl=0",
        None,
    )
}


def find_published(name: str) -> Path:
    """Where a released checkpoint lies, downloaded if it is not there; WeightsError when it cannot be had."""
    import torch

    entry = PUBLISHED[name]
    path = cache_folder("checkpoints") / f"{name}.pt"
    if path.exists():
        return path
    say(f"downloading {name} from {entry.url} to {path}")
    try:
        with atomic_write(path) as temporary:
            torch.hub.download_url_to_file(entry.url, str(temporary), hash_prefix=entry.sha256)
    except (OSError, RuntimeError) as error:
        raise WeightsError(
            f"{name} is not at {path} and could not be downloaded ({error}): get {entry.url} where there is a network "
            f"and put it there (${VARIABLE} names another folder), or give its path as --checkpoint"
        ) from None
    return path


def is_published(values: Mapping[str, Any]) -> bool:
    """Whether this is what a published file holds."""
    return "sit" not in values and ("ema" in values or "x_embedder.proj.weight" in values)


def published_model(values: Mapping[str, Any], ema: bool, path: Path) -> tuple[SiT, TrainConfig, int]:
    """The model of a published file, what is known of its training, and its step (0: the file does not say).

    Raises CheckpointError where it holds no SiT, or only averaged weights and others are asked for.
    """
    weights: Mapping[str, Tensor] = values.get("ema" if ema else "model", {})
    if "x_embedder.proj.weight" in values:
        weights = values if ema else {}
    if not weights:
        raise CheckpointError(f"{path} holds averaged weights only: leave out --no-ema")
    args = vars(values["args"]) if "args" in values else {}
    try:
        model = SiT(infer_sit_config(weights, args.get("encoder_depth")))
        load_sit_state(model, weights)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    config = TrainConfig(store="", vae=VAE, path_type=args.get("path_type", "linear"))
    return model, config, int(values.get("steps", 0))
