"""A cache of row groups of parquet files, shared by the threads of a process."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeAlias

RowGroup: TypeAlias = tuple[str, int]
"""A file and the number of one of its row groups."""


class RowGroupCache:
    """An LRU cache of row groups. Concurrent requests for the same row group read it once.

    Args:
        capacity: number of row groups to cache.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._lock = threading.Lock()
        self._futures: OrderedDict[RowGroup, Future[Any]] = OrderedDict()

    def __reduce__(self) -> tuple[type["RowGroupCache"], tuple[int]]:
        """Pickle an empty cache."""
        return RowGroupCache, (self._capacity,)

    def get(self, row_group: RowGroup, read: Callable[[RowGroup], Any]) -> Any:
        """Return a row group, calling `read` if it is not cached."""
        with self._lock:
            future = self._futures.get(row_group)
            is_new = future is None
            if future is None:
                future = self._futures[row_group] = Future()
                if len(self._futures) > self._capacity:
                    self._futures.popitem(last=False)
            self._futures.move_to_end(row_group)
        if is_new:
            try:
                future.set_result(read(row_group))
            except BaseException as error:
                with self._lock:
                    self._futures.pop(row_group, None)
                future.set_exception(error)
        return future.result()
