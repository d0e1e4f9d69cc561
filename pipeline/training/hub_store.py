"""The commit of a store on the Hugging Face Hub that a run is trained from: recorded in the run, and kept by it."""

from __future__ import annotations

import dataclasses
import logging

from ...config import TrainConfig
from ...stores import open_store
from ...stores.hub import HubLocation, is_hub, pinned
from ..artifacts.run_folder import RunFolder
from .setup import resolve

logger = logging.getLogger(__name__)


def at_one_commit(config: TrainConfig) -> TrainConfig:
    """Return the config with the commit of its store: the one that the run began with, else that of the revision now.

    Raises:
        RemoteError: there is no such repository or revision, or the Hub cannot be reached.
    """
    if not is_hub(config.store) or HubLocation.parse(config.store).is_pinned:
        return config
    current = pinned(config.store)
    if config.exp_name:
        run_folder = RunFolder.of(config)
    else:
        with open_store(current) as store:
            run_folder = RunFolder.of(resolve(config, store))
    if not run_folder.config_file.exists():
        return dataclasses.replace(config, store=current)
    began = run_folder.read_config().store
    if not is_hub(began) or HubLocation.parse(began).repo != HubLocation.parse(current).repo:
        return dataclasses.replace(config, store=current)
    if began != current:
        logger.warning(
            "%s is now %s: %s continues with the commit that it began with, %s",
            config.store,
            current,
            run_folder.path,
            began,
        )
    return dataclasses.replace(config, store=began)
