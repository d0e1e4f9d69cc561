"""Ranks that divide tasks among themselves, without collectives, so that a rank may wait for another one for hours.

The ranks share a small store of keys and values, which the launcher or the first rank hosts. Each rank takes the next
task from a counter in it, and counts up a sign of life. A rank that fails, stops or falls silent ends all of them.
"""

from __future__ import annotations

import itertools
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, TypeVar

from ...errors import RankError, first_line
from .distributed import DistributedContext, announce_join, others_not_found, ranks_of_environment
from .progress import progress

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined]

logger = logging.getLogger(__name__)
T = TypeVar("T")

JOIN_S = 300.0  # for all ranks to start
SILENCE_S = 60.0  # without a sign of life, after which a rank counts as lost
ALIVE_EVERY_S = 2.0
POLL_S = 0.2
STOPPED = "stopped"

_groups = itertools.count()  # all ranks of a command form the same groups in the same order


class WorkGroup:
    """The ranks of a command, of which this process is one. Create it with `work_group`."""

    def __init__(self, ranks: DistributedContext, store: Store, is_stopped: Callable[[], bool]) -> None:
        self._ranks, self._store, self._is_stopped = ranks, store, is_stopped
        self._watched = [rank for rank in range(ranks.world_size) if rank != ranks.rank and 0 in (rank, ranks.rank)]
        self._seen: dict[int, tuple[int, float]] = {}  # rank → its last sign of life, and when it changed
        self._checked = 0.0

    @property
    def is_first(self) -> bool:
        """Whether this process writes shared files and shows progress."""
        return self._ranks.is_first

    def share(self, make: Callable[[], T]) -> T:
        """Return what `make` returns on the first rank, a JSON value, on every rank. Call it once."""
        if self.is_first:
            value = make()
            self._store.set("shared", json.dumps(value))
            return value
        self._wait(lambda: self._store.check(["shared"]))
        shared: T = json.loads(self._store.get("shared"))
        return shared

    def divide(self, tasks: Sequence[T]) -> Iterator[T]:
        """Yield each of the tasks on one rank only: the next one to whoever is ready. All ranks pass the same tasks."""
        while True:
            self.check()
            number = self._store.add("next", 1) - 1
            if number >= len(tasks):
                return
            yield tasks[number]

    @contextmanager
    def progress(self, description: str, total: int, unit: str, done: int = 0) -> Iterator[Callable[[int], object]]:
        """Yield a function that adds to the amount of finished work, of which `done` was finished before.

        The first rank shows that of all ranks, and waits at the end until it is `total`.
        """
        if not self.is_first:
            yield lambda count: self._store.add("done", count)
            return
        with progress(description, total, unit, done) as bar:

            def add(count: int) -> int:
                reached = done + self._store.add("done", count)
                bar.reach(reached, total)
                return reached

            yield add
            self._wait(lambda: add(0) >= total)

    def leave(self) -> None:
        """Wait until all ranks have come here."""
        self._store.add("arrived", 1)
        self._wait(lambda: self._store.add("arrived", 0) == self._ranks.world_size)
        self._store.add("left", 1)
        if self.is_first:  # which may host the store
            self._wait(lambda: self._store.add("left", 0) == self._ranks.world_size)

    def announce(self, error: BaseException) -> None:
        """Tell the others that this rank ends."""
        text = STOPPED if isinstance(error, KeyboardInterrupt) else f"{type(error).__name__}: {first_line(error)}"
        self._store.set("ended", json.dumps([self._ranks.rank, text]))

    def count_up(self) -> None:
        """Give a sign of life."""
        self._store.add(f"alive {self._ranks.rank}", 1)

    def check(self) -> None:
        """Raise KeyboardInterrupt if any rank was stopped, RankError if another one has failed or is lost."""
        if self._is_stopped():
            raise KeyboardInterrupt
        if self._store.check(["ended"]):
            rank, text = json.loads(self._store.get("ended"))
            if text == STOPPED:
                raise KeyboardInterrupt
            raise RankError(f"{self._name(rank)} ended with an error ({text}): re-run the same command to resume")
        now = time.monotonic()
        if now - self._checked < ALIVE_EVERY_S:
            return
        self._checked = now
        for rank in self._watched:
            signs = self._store.add(f"alive {rank}", 0)
            if self._seen.get(rank, (None, now))[0] != signs:
                self._seen[rank] = signs, now
            if now - self._seen[rank][1] > SILENCE_S:
                raise RankError(
                    f"{self._name(rank)} has given no sign of life for {SILENCE_S:g} s: its process or machine has "
                    "ended or hangs; end it and re-run the same command to resume"
                )

    def _wait(self, is_reached: Callable[[], bool]) -> None:
        while not is_reached():
            self.check()
            time.sleep(POLL_S)

    def _name(self, rank: int) -> str:
        return f"rank {rank} of {self._ranks.world_size}"


@contextmanager
def work_group(is_stopped: Callable[[], bool]) -> Iterator[WorkGroup]:
    """Join the ranks that the environment describes, until all of them end the block.

    Args:
        is_stopped: returns whether this process was asked to stop; all ranks then raise KeyboardInterrupt.

    Raises:
        ConfigError: the environment describes no rank, or not all ranks have started.
        RankError: another rank has failed or is lost.
    """
    from torch.distributed import DistError, HashStore, PrefixStore  # type: ignore[attr-defined]

    ranks = ranks_of_environment()
    store = _connect(ranks) if ranks.world_size > 1 else HashStore()
    group = WorkGroup(ranks, PrefixStore(f"repa-pipe {next(_groups)}", store), is_stopped)
    ended = threading.Event()
    alive = threading.Thread(target=_stay_alive, args=(group, ended), name="sign-of-life", daemon=True)
    alive.start()
    try:
        yield group
        group.leave()
    except DistError as error:
        raise RankError(
            f"rank {ranks.rank} of {ranks.world_size} lost the connection to the first rank or its launcher "
            f"({first_line(error)}): re-run the same command to resume"
        ) from error
    except BaseException as error:
        if not isinstance(error, RankError):
            _announce(group, error)
        raise
    finally:
        ended.set()
        alive.join()


def _announce(group: WorkGroup, error: BaseException) -> None:
    from torch.distributed import DistError

    try:
        group.announce(error)
    except DistError:
        logger.debug("the other ranks cannot be told of an error", exc_info=True)


def _stay_alive(group: WorkGroup, ended: threading.Event) -> None:
    from torch.distributed import DistError

    while True:
        try:
            group.count_up()
        except DistError:
            return  # this rank notices at its next use of the store
        if ended.wait(ALIVE_EVERY_S):
            return


@cache  # the store must outlive a group: a fast rank may already form the next one
def _connect(ranks: DistributedContext) -> Store:
    from torch.distributed import DistError, rendezvous  # type: ignore[attr-defined]

    announce_join(ranks)
    try:
        store: Store = next(rendezvous("env://", ranks.rank, ranks.world_size, timeout=timedelta(seconds=JOIN_S)))[0]
    except (DistError, ValueError) as error:
        raise others_not_found(ranks, error) from error
    store.set_timeout(timedelta(seconds=SILENCE_S))
    return store
