"""A map-style dataset over a store, for training loops that keep their DataLoader.

`AlignmentDataset` itself needs no processes, resumes, and divides batches among ranks. See docs/own-trainer.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from .batch import Batch, collate
from .dataset import AlignmentDataset
from .indexing import Indices, as_rows, as_single

if TYPE_CHECKING:
    Base = torch.utils.data.Dataset[Batch]
else:
    Base = torch.utils.data.Dataset


class MapStyleDataset(Base):
    """The valid samples of a store; item i is the i-th of them, as a batch of one sample.

    DataLoader(MapStyleDataset(dataset), batch_size=64, shuffle=True, num_workers=4)

    Each batch of the DataLoader is one read of the store and is returned as a `Batch`. Slices and arrays of positions
    return a batch as well.

    Args:
        dataset: defines the latents and encoders to read. Its order, ranks and prefetching are not used.
    """

    def __init__(self, dataset: AlignmentDataset) -> None:
        self._dataset = dataset

    def __repr__(self) -> str:
        groups = ", ".join([self._dataset.latents, *self._dataset.features])
        return f"<MapStyleDataset of {self._dataset.store.location}: {len(self)} samples of {groups}>"

    def __len__(self) -> int:
        return len(self._dataset.rows)

    def __getitem__(self, position: int | Indices) -> Batch:
        single = as_single(position)
        rows = as_rows(position if single is None else [single], len(self))
        return self._dataset.read(self._dataset.rows.at(rows))

    def __getitems__(self, positions: Sequence[int]) -> list[Batch]:
        """Read all samples of a batch at once; DataLoader prefers this method over `__getitem__`."""
        return [self[list(positions)]]

    @staticmethod
    def collate(batches: Sequence[Batch]) -> Batch:
        """Return the batch that `__getitems__` has read. The default collation of DataLoader does the same."""
        return collate(batches)
