"""trackio: a database on this machine, or what $TRACKIO_SPACE_ID or $TRACKIO_SERVER_URL name."""

from __future__ import annotations

import sys
import uuid
from contextlib import redirect_stdout
from typing import Any

from ....config import TrainConfig
from ...artifacts.images import Block
from ...artifacts.run_folder import RunFolder
from .tracker import PROJECT


class Trackio:
    """A run in trackio, which a resumed run continues.

    trackio finds it by its name, so that the name ends with an ID: runs in other folders may be called the same.
    """

    def __init__(self, run: RunFolder, config: TrainConfig) -> None:
        import trackio

        self._trackio: Any = trackio
        if not run.trackio_name.exists():
            run.trackio_name.write_text(f"{config.exp_name}-{uuid.uuid4().hex[:8]}", encoding="utf-8")
        labels = {"notes": config.notes, "tags": list(config.tag)}  # trackio has no place of its own for them
        with redirect_stdout(sys.stderr):  # it prints
            self._run: Any = trackio.init(
                project=PROJECT,
                name=run.trackio_name.read_text(encoding="utf-8"),
                resume="allow",
                group=config.group,
                config=config.as_json() | {name: value for name, value in labels.items() if value},
                embed=False,
            )

    def log_scalars(self, step: int, values: dict[str, float]) -> None:
        """Log scalars of a step."""
        self._run.log(values, step=step)

    def log_image(self, step: int, image: Block) -> None:
        """Log an image, uint8 `[H, W, 3]`."""
        self._run.log({"samples": self._trackio.Image(image)}, step=step)

    def close(self) -> None:
        """Flush and close; trackio waits for at most 30 s."""
        with redirect_stdout(sys.stderr):
            self._trackio.finish()
