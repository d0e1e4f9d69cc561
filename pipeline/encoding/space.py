"""The disk space that encoding needs: a warning if there is too little, and one error when the disk is full."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ...errors import StoreError
from ...stores import Store
from ...stores.layout import shard_range
from ...stores.remote import is_url
from ..runtime.full_disk import free_bytes, is_disk_full
from ..runtime.sizes import bytes_text

logger = logging.getLogger(__name__)


def missing_bytes(store: Store, wanted: Sequence[str]) -> int:
    """Return the bytes of all shards that the groups `wanted` lack, without the groups that do not exist yet."""
    size = store.manifest.shard_size
    groups = [store.group(name) for name in wanted if name in store.group_names()]
    return sum(
        len(shard_range(shard, len(store), size)) * group.spec.sample_bytes
        for group in groups
        for shard in group.missing_shards()
    )


def warn_of_little_space(store: Store, wanted: Sequence[str]) -> None:
    """Log a warning if the shards of a store in a folder do not fit on its disk."""
    if is_url(store.location):
        return  # shards are deleted once they are uploaded
    needed, free = missing_bytes(store, wanted), free_bytes(store.path)
    if needed > free:
        logger.warning(
            "%s needs %s more, and %s are free: encoding will end when the disk is full",
            store.location,
            bytes_text(needed),
            bytes_text(free),
        )


@contextmanager
def full_disk_as_error(store: Store, wanted: Sequence[str]) -> Iterator[None]:
    """Turn the error of a full disk into a StoreError that states the bytes that are needed."""
    try:
        yield
    except OSError as error:
        if not is_disk_full(error):
            raise
        raise StoreError(
            f"{_describe(store, wanted)}; then re-run the same command, which keeps what is committed"
        ) from error


def _describe(store: Store, wanted: Sequence[str]) -> str:
    if is_url(store.location):
        return (
            f"the temporary folder {tempfile.gettempdir()}, from which shards are uploaded, is full on this machine or "
            "another one: free some space, or set TMPDIR to a folder on a larger disk"
        )
    needed, free = bytes_text(missing_bytes(store, wanted)), bytes_text(free_bytes(store.path))
    return (
        f"the disk of {store.location} is full: {needed} are needed for the missing shards, {free} are free: free some "
        "space"
    )
