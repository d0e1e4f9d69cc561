"""Steps that are logged once, although a run that was killed takes those after its last checkpoint again.

The steps have the same losses both times, so the first row stays. W&B ignores smaller steps only while it is online,
and trackio never does: it would have two rows of a step.
"""

from __future__ import annotations

from ....converter import read_json, structure
from ....stores.files import write_json
from ...artifacts.damaged import read_or_set_aside
from ...artifacts.images import Block
from ...artifacts.run_folder import RunFolder
from ...runtime.lease import require_held
from .tracker import Tracker


class LoggedOnce:
    """A tracker that is not passed steps which an earlier session of the run has passed to it.

    Args:
        tracker: receives the other steps.
        run: its `trackers.json` records the last steps that were passed.
        name: of the tracker in this file.
    """

    def __init__(self, tracker: Tracker, run: RunFolder, name: str) -> None:
        self._tracker, self._run, self._name = tracker, run, name
        self._before = _recorded(run).get(name, {})
        self._last = dict(self._before)

    def log_scalars(self, step: int, values: dict[str, float]) -> None:
        """Log scalars of a step."""
        if self._is_new("scalars", step):
            self._tracker.log_scalars(step, values)
            self._record("scalars", step)

    def log_image(self, step: int, image: Block) -> None:
        """Log an image, uint8 `[H, W, 3]`."""
        if self._is_new("images", step):
            self._tracker.log_image(step, image)
            self._record("images", step)

    def close(self) -> None:
        """Flush and close."""
        self._tracker.close()

    def _is_new(self, kind: str, step: int) -> bool:
        return step > self._before.get(kind, -1)

    def _record(self, kind: str, step: int) -> None:
        self._last[kind] = step
        require_held()
        write_json(self._run.trackers_file, _recorded(self._run) | {self._name: self._last})


def _recorded(run: RunFolder) -> dict[str, dict[str, int]]:
    """Return the last steps by tracker and kind; none without a file. A damaged one is set aside."""
    path = run.trackers_file

    def read() -> dict[str, dict[str, int]]:
        return structure(read_json(path), dict[str, dict[str, int]], str(path))

    return read_or_set_aside(path, read, "trackers may get steps again that they already have") or {}
