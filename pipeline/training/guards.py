"""When a run may not start, and how it ends before its time."""

from __future__ import annotations

import errno
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...config import TrainConfig, read_config
from ...errors import CheckpointError, ConfigError
from ..artifacts.checkpoints import StoreMetadata, list_checkpoints

CONFIG_FILE = "train.json"


def require_same_run(run_dir: Path, config: TrainConfig) -> None:
    """Raise ConfigError when the run has checkpoints of another configuration."""
    if not list_checkpoints(run_dir):
        return
    different = TrainConfig.from_json(read_config(run_dir / CONFIG_FILE)).differences(config)
    if different:
        raise ConfigError(
            f"{run_dir} was started with another configuration ({'; '.join(different)}): "
            "use the same flags to go on, or another --exp-name"
        )


def require_same_store(there: StoreMetadata, here: StoreMetadata, path: Path) -> None:
    """Raise CheckpointError when the checkpoint at `path` came from another store."""
    pairs: dict[str, tuple[Any, Any]] = {
        "images": (there.index_digest, here.index_digest),
        "scale of the latents": (there.latents_scale, here.latents_scale),
        "bias of the latents": (there.latents_bias, here.latents_bias),
    }
    for group, fingerprint in here.fingerprints.items():
        old = there.fingerprints.get(group, {})
        pairs |= {f"{group} {name}": (old.get(name), fingerprint[name]) for name in fingerprint}
    different = [f"{name}: {old!r} there, {new!r} here" for name, (old, new) in pairs.items() if old != new]
    if different:
        raise CheckpointError(f"{path} was trained from another store ({'; '.join(different)}): use that one")


@contextmanager
def full_disk_is_named(folder: str) -> Iterator[None]:
    """Turn a full disk into a CheckpointError."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise CheckpointError(
            f"{folder} is full ({error}): what was written before is whole; make room and start the same command again"
        ) from error


@contextmanager
def interruptible() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM instead of dying in the middle of a step; the list is empty until one comes."""
    received: list[int] = []
    handled = (signal.SIGINT, signal.SIGTERM)
    try:
        before = [signal.signal(number, lambda got, _: received.append(got)) for number in handled]
    except ValueError:  # not the main thread: whoever started us handles signals
        yield received
        return
    try:
        yield received
    finally:
        for number, handler in zip(handled, before, strict=True):
            signal.signal(number, handler)
