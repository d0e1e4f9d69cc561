"""Exact nearest neighbors by cosine distance, in a set that is read block by block."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from .arrays import Array, as_features, check_same_width, full_float32

QUERIES_AT_ONCE = 4096


class NearestNeighbors:
    """The nearest of all features that are added, for each query. All arithmetic is float32.

    Args:
        queries: features [Q, D] of any floating dtype. Memory: these, and a product with one block.
        count: number of neighbors per query.
        own: int64 [Q], the number of the query itself in the searched set, which is no neighbor; -1 for none.

    Raises:
        ConfigError: the queries have another shape, or are not finite.
    """

    def __init__(self, queries: Array, count: int, own: Tensor | None = None) -> None:
        self._queries = normalize(as_features(queries, "queries").float())
        device = self._queries.device
        self._own = torch.full((len(self._queries),), -1) if own is None else own
        self._own = self._own.to(device)
        self._cosines = torch.full((len(self._queries), count), -torch.inf, device=device)
        self.indices = torch.full((len(self._queries), count), -1, device=device)
        """Int64 [Q, count]: numbers of the neighbors so far, the nearest first; -1 where fewer were added."""

    @property
    def distances(self) -> Tensor:
        """Cosine distances, 1 minus the cosine, float32 [Q, count] from 0 to 2; infinity where there is no neighbor."""
        return (1 - self._cosines).clamp(min=0)

    def add(self, indices: Tensor, features: Array) -> None:
        """Add a block.

        Args:
            indices: int64 [B], numbers of the block in the searched set, each added once.
            features: [B, D] of any floating dtype.

        Raises:
            ConfigError: the features have another width, or are not finite.
        """
        block = normalize(as_features(features, "features").float())
        check_same_width(self._queries, block, "queries and features")
        block, indices = block.to(self._queries), indices.to(self.indices)
        for start in range(0, len(self._queries), QUERIES_AT_ONCE):
            part = slice(start, start + QUERIES_AT_ONCE)
            with full_float32():
                cosines = self._queries[part] @ block.T
            cosines.masked_fill_(self._own[part, None] == indices, -torch.inf)
            found, places = cosines.topk(min(self.indices.shape[1], len(block)), dim=1)
            self._merge(part, found, indices[places])

    def _merge(self, part: slice, cosines: Tensor, indices: Tensor) -> None:
        count = self.indices.shape[1]
        indices = indices.where(cosines > -torch.inf, -1)
        both = torch.cat([self._cosines[part], cosines], 1)
        found, places = both.sort(dim=1, descending=True, stable=True)  # of equal ones, that which was added first
        order = places[:, :count]
        self._cosines[part] = found[:, :count]
        self.indices[part] = torch.cat([self.indices[part], indices], 1).gather(1, order)
