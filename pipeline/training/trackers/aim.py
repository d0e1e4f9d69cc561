"""Aim: a repository next to the run folders, which `aim up --repo exps` shows."""

from __future__ import annotations

from typing import Any

from ....config import TrainConfig
from ...artifacts.images import Block
from ...artifacts.run_folder import RunFolder
from .tracker import PROJECT


class Aim:
    """A run in Aim, which a resumed run continues: its ID is in the run folder. A step that is logged again replaces
    the one before.
    """

    def __init__(self, run: RunFolder, config: TrainConfig) -> None:
        import aim

        self._aim: Any = aim
        known = run.aim_id.read_text(encoding="ascii") if run.aim_id.exists() else None
        self._run: Any = aim.Run(
            run_hash=known,
            repo=str(run.path.parent),
            experiment=config.group or PROJECT,
            force_resume=known is not None,  # a run that was killed has left its lock
            capture_terminal_logs=False,
        )
        run.aim_id.write_text(self._run.hash, encoding="ascii")
        self._run.name = config.exp_name
        self._run["config"] = config.as_json()
        if config.notes is not None:
            self._run.description = config.notes
        for tag in set(config.tag) - set(self._run.tags):
            self._run.add_tag(tag)

    def log_scalars(self, step: int, values: dict[str, float]) -> None:
        """Log scalars of a step."""
        self._run.track(values, step=step)

    def log_image(self, step: int, image: Block) -> None:
        """Log an image, uint8 `[H, W, 3]`."""
        from PIL import Image

        self._run.track(self._aim.Image(Image.fromarray(image)), name="samples", step=step)

    def close(self) -> None:
        """Flush and close."""
        self._run.close()
