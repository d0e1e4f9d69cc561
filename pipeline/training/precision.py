"""The precision of a training run: as requested, else as recorded, else what the hardware of all ranks has."""

from __future__ import annotations

import dataclasses
import logging

import torch

from ...config import TrainConfig
from ..artifacts.run_folder import RunFolder
from ..runtime.device import choose_precision, warn_if_emulated
from ..runtime.distributed import DistributedContext

logger = logging.getLogger(__name__)


def with_precision(
    config: TrainConfig, run_folder: RunFolder, device: torch.device, ranks: DistributedContext
) -> TrainConfig:
    """Return the config with `mixed_precision` set; the first rank logs the choice and its reason.

    A run that has checkpoints keeps its precision on any hardware, so that resuming does not change the result.
    """
    own, reason = choose_precision(device)
    some_rank_lacks_bf16 = ranks.any(own == "fp32", device)
    recorded = run_folder.read_config().mixed_precision if run_folder.checkpoints() else None
    if config.mixed_precision is not None:
        precision, why = config.mixed_precision, "as requested"
    elif recorded is not None:
        precision, why = recorded, "as recorded by this run"
    elif some_rank_lacks_bf16 and own == "bf16":
        precision, why = "fp32", "because another rank has no bf16"
    else:
        precision, why = own, f"because {reason}"
    if ranks.is_first:
        logger.info("precision: %s, %s", precision, why)
        warn_if_emulated(precision, device)
    return dataclasses.replace(config, mixed_precision=precision)
