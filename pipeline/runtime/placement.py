"""Waiting for resources on Ray: what is wanted, what the cluster has, and when to give up.

Ray itself waits without a word and without an end: nodes may join at any time, and another job may end.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ...errors import ActorError

logger = logging.getLogger(__name__)

FIRST_LINE_S = 15.0  # without a place for any worker
LINE_EVERY_S = 60.0
LIMIT_S = 900.0  # autoscalers start nodes within minutes


class PlacementWatch:
    """Logs that no worker has found a place on the cluster, and gives up after `LIMIT_S` seconds.

    Args:
        wanted: resources of one worker, such as `{"CPU": 2, "GPU": 1}`.
    """

    def __init__(self, wanted: Mapping[str, float]) -> None:
        self._wanted = {name: amount for name, amount in wanted.items() if amount}
        self._since = time.monotonic()
        self._next_line = self._since + FIRST_LINE_S

    def check(self) -> None:
        """Log what is wanted and what exists if it is time to; raise ActorError after the limit."""
        now = time.monotonic()
        if now < self._next_line:
            return
        self._next_line = now + LINE_EVERY_S
        waited = now - self._since
        found = (
            f"Ray has no place for a worker with {_text(self._wanted)} after {waited:.0f} s: {_cluster(self._wanted)}"
        )
        if waited >= LIMIT_S:
            raise ActorError(f"{found}; free or add resources, then re-run the same command")
        logger.warning("%s; waiting for nodes or for other jobs to end, until %.0f s", found, LIMIT_S)


def wait_for_places(bundles: Sequence[Mapping[str, float]]) -> None:
    """Wait until the cluster has room for all bundles of resources at once.

    Raises:
        ActorError: it still had none after `LIMIT_S` seconds.
    """
    import ray
    from ray.util import placement_group, remove_placement_group

    total: dict[str, float] = {}
    for name in {name for bundle in bundles for name in bundle}:
        total[name] = sum(bundle.get(name, 0) for bundle in bundles)
    watch = PlacementWatch(total)
    group = placement_group([dict(bundle) for bundle in bundles])
    try:
        while not ray.wait([group.ready()], timeout=1.0)[0]:
            watch.check()
    finally:
        remove_placement_group(group)


def _cluster(wanted: Mapping[str, float]) -> str:
    """Return the number of nodes, and the existing and free amounts of the resources that are wanted."""
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    exist, free = ray.cluster_resources(), ray.available_resources()
    amounts = " and ".join(
        f"{_amount(name, exist.get(name, 0))}, {free.get(name, 0):g} of them free" for name in sorted(wanted)
    )
    return f"the cluster has {len(nodes)} {'node' if len(nodes) == 1 else 'nodes'} with {amounts}"


def _text(resources: Mapping[str, float]) -> str:
    return " and ".join(_amount(name, amount) for name, amount in sorted(resources.items()))


def _amount(name: str, amount: Any) -> str:
    return f"{amount:g} {name if amount == 1 else name + 's'}"
