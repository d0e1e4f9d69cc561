"""A cache of parts of files, shared by the threads of a process."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeAlias

Block: TypeAlias = tuple[str, int]
"""A file, and the number of a row group (parquet) or the offset of a record batch (Arrow)."""


class BlockCache:
    """An LRU cache of blocks. Concurrent requests for the same block read it once.

    Args:
        capacity: number of blocks to cache.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._lock = threading.Lock()
        self._futures: OrderedDict[Block, Future[Any]] = OrderedDict()

    def __reduce__(self) -> tuple[type["BlockCache"], tuple[int]]:
        """Pickle an empty cache."""
        return BlockCache, (self._capacity,)

    def get(self, block: Block, read: Callable[[Block], Any]) -> Any:
        """Return a block, calling `read` if it is not cached."""
        with self._lock:
            future = self._futures.get(block)
            is_new = future is None
            if future is None:
                future = self._futures[block] = Future()
                if len(self._futures) > self._capacity:
                    self._futures.popitem(last=False)
            self._futures.move_to_end(block)
        if is_new:
            try:
                future.set_result(read(block))
            except BaseException as error:
                with self._lock:
                    self._futures.pop(block, None)
                future.set_exception(error)
        return future.result()
