"""A queue of tasks that are retried when they fail.

A task may share its worker with another task, except in its last try: if the worker dies then, no other task can be the
cause, and no other task is affected.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from ...errors import first_line

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Entry(Generic[T]):
    """A task, and the number of its current try, counted from 1."""

    task: T
    tried: int = 1


@dataclass(frozen=True, slots=True)
class Failure(Generic[T]):
    """A task that failed in every try, and the error of its last try."""

    task: T
    error: BaseException

    @property
    def cause(self) -> str:
        """The error in one line."""
        return f"{type(self.error).__name__}: {first_line(self.error)}"


class TaskQueue(Generic[T]):
    """Waiting tasks, and those that failed in every try.

    Args:
        tasks: the tasks, in the order in which they start.
        tries: number of tries per task.
        is_fatal: whether an error would recur for every task, so that it is raised and no task is retried.
    """

    def __init__(self, tasks: Iterable[T], tries: int, is_fatal: Callable[[BaseException], bool]) -> None:
        self._waiting = deque(Entry(task) for task in tasks)
        self._last_tries: deque[Entry[T]] = deque()
        self._tries, self._is_fatal = tries, is_fatal
        self.failures: list[Failure[T]] = []

    def __len__(self) -> int:
        return len(self._waiting) + len(self._last_tries)

    def take(self, worker_is_idle: bool) -> Entry[T] | None:
        """Return the next task for a worker, or None. Only an idle worker receives a last try."""
        if self._waiting:
            return self._waiting.popleft()
        return self._last_tries.popleft() if self._last_tries and worker_is_idle else None

    def is_last_try(self, entry: Entry[T]) -> bool:
        """Return whether the task is not retried if this try fails."""
        return entry.tried == self._tries

    def put_back(self, entry: Entry[T]) -> None:
        """Queue a task that another task's failure interrupted. The try does not count."""
        self._waiting.appendleft(entry)

    def fail(self, entry: Entry[T], error: BaseException) -> None:
        """Queue a failed task again, or record the failure of its last try. Raises `error` if it is fatal."""
        if self._is_fatal(error):
            raise error
        if self.is_last_try(entry):
            self.failures.append(Failure(entry.task, error))
            return
        entry = Entry(entry.task, entry.tried + 1)
        (self._last_tries if self.is_last_try(entry) else self._waiting).append(entry)
