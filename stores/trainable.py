"""The samples that a trainer draws from, and the conditions that a store must meet. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import ConfigError, StoreError
from .row_set import RowSet
from .store import Selection, Store


def trainable_rows(
    chosen: Store | Selection, groups: Sequence[str], *, batch_size: int, world_size: int = 1, flip: bool = False
) -> RowSet:
    """Return the samples that are valid in all groups.

    Args:
        chosen: an open store, or some of its samples.
        groups: paths of the groups that are read.
        batch_size: samples per global batch, over all ranks.
        world_size: number of ranks.
        flip: whether flipped views are read.

    Raises:
        ConfigError: the batch size is not divisible by the number of ranks, or is larger than the store.
        StoreError: a group is missing or incomplete, or has no flipped views although `flip` is set.
    """
    store = chosen.store if isinstance(chosen, Selection) else chosen
    rows = store.valid_rows(groups)
    if isinstance(chosen, Selection):
        rows = chosen.rows.without(rows.excluded)
    for name in groups if flip else ():
        if not store.group(name).spec.has_flips:
            raise StoreError(
                f"{store.location}: {name} has no flipped views: create a store with 'repa-pipe encode … --flip'"
            )
    if batch_size % world_size:
        raise ConfigError(f"batch size {batch_size} is not divisible by the number of ranks ({world_size})")
    if batch_size > len(rows):
        selected = "selected " if len(chosen) < len(store) else ""
        raise ConfigError(
            f"batch size {batch_size} is larger than the {len(rows)} {selected}samples of {store.location}: "
            "lower --batch-size"
        )
    return rows
