"""A map-style dataset over a store, for training loops that keep their DataLoader.

Slower than `AlignmentDataset`, because every batch is passed between processes. See docs/own-trainer.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from .dataset import AlignmentDataset, Batch

if TYPE_CHECKING:
    Base = torch.utils.data.Dataset[Batch]
else:
    Base = torch.utils.data.Dataset


class MapStyleDataset(Base):
    """The valid samples of a store; item i is the i-th of them.

    DataLoader(MapStyleDataset(dataset), batch_size=64, shuffle=True, num_workers=4, collate_fn=MapStyleDataset.collate)

    Each batch of the DataLoader is one read of the store and is returned as a `Batch`.

    Args:
        dataset: defines the latents and encoders to read. Its order, ranks and prefetching are not used.
    """

    def __init__(self, dataset: AlignmentDataset) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset.indices)

    def __getitem__(self, position: int) -> Batch:
        return self.__getitems__([position])

    def __getitems__(self, positions: Sequence[int]) -> Batch:
        """Read all samples of a batch at once; DataLoader prefers this method over `__getitem__`."""
        return self._dataset.read(self._dataset.indices[list(positions)])

    @staticmethod
    def collate(batch: Any) -> Any:
        """Return the batch unchanged: it is already collated."""
        return batch
