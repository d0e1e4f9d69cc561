"""A few row groups of parquet files, kept for the threads of one process."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeAlias

RowGroup: TypeAlias = tuple[str, int]
"""A file, and the number of a row group in it."""


class RowGroups:
    """The row groups that were read last; each is read once, however many threads ask for it."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._lock = threading.Lock()
        self._futures: OrderedDict[RowGroup, Future[Any]] = OrderedDict()

    def __reduce__(self) -> tuple[type["RowGroups"], tuple[int]]:
        """Travel to another process empty."""
        return RowGroups, (self._capacity,)

    def get(self, place: RowGroup, read: Callable[[RowGroup], Any]) -> Any:
        """Give a row group, reading it if it isn't kept."""
        with self._lock:
            future = self._futures.get(place)
            mine = future is None
            if future is None:
                future = self._futures[place] = Future()
                if len(self._futures) > self._capacity:
                    self._futures.popitem(last=False)
            self._futures.move_to_end(place)
        if mine:
            try:
                future.set_result(read(place))
            except BaseException as error:
                with self._lock:
                    self._futures.pop(place, None)
                future.set_exception(error)
        return future.result()
