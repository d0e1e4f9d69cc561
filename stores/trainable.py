"""The samples that a trainer draws from, and the conditions that a store must meet. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError, StoreError
from .store import Selection, Store


def trainable_indices(
    chosen: Store | Selection, groups: Sequence[str], *, batch_size: int, world_size: int = 1, flip: bool = False
) -> npt.NDArray[np.int64]:
    """Return the samples that are valid in all groups, `[n]` int64 in ascending order.

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
    indices = store.valid_indices(groups)
    if isinstance(chosen, Selection):
        indices = indices[np.isin(indices, chosen.indices)]
    for name in groups if flip else ():
        if not store.group(name).spec.has_flips:
            raise StoreError(
                f"{store.location}: {name} has no flipped views: create a store with 'repa-pipe encode … --flip'"
            )
    if batch_size % world_size:
        raise ConfigError(f"batch size {batch_size} is not divisible by the number of ranks ({world_size})")
    if batch_size > len(indices):
        selected = "selected " if len(chosen) < len(store) else ""
        raise ConfigError(
            f"batch size {batch_size} is larger than the {len(indices)} {selected}samples of {store.location}: "
            "lower --batch-size"
        )
    return indices
