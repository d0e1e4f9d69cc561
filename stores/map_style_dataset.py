"""A store as torch's map-style dataset, for loops that keep their DataLoader.

Slower than `AlignmentDataset`: every batch is handed from process to process. See docs/own-trainer.md.
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
    """Valid samples of a store, by their position among these.

    DataLoader(MapStyleDataset(dataset), batch_size=64, shuffle=True, num_workers=4, collate_fn=MapStyleDataset.collate)

    Each DataLoader batch is one read of the store and arrives as a `Batch`. `dataset` says which latents and encoders;
    its own order, ranks and read-ahead are not used.
    """

    def __init__(self, dataset: AlignmentDataset) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset.indices)

    def __getitem__(self, position: int) -> Batch:
        return self.__getitems__([position])

    def __getitems__(self, positions: Sequence[int]) -> Batch:
        """All samples of a batch at once, as DataLoader asks for them."""
        return self._dataset.read(self._dataset.indices[list(positions)])

    @staticmethod
    def collate(batch: Any) -> Any:
        """Leave the batch as it was read."""
        return batch
