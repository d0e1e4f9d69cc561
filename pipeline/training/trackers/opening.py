"""Open the trackers that `--report-to` selects."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

from ....config import TrainConfig
from ....errors import ConfigError
from ...artifacts.run_folder import RunFolder
from .aim import Aim
from .guarded import Guarded
from .once import LoggedOnce
from .tensorboard import TensorBoard
from .tracker import Tracker, Trackers
from .trackio import Trackio
from .wandb import WandB

_TITLES = {"tensorboard": "TensorBoard", "wandb": "W&B", "trackio": "trackio", "aim": "Aim"}
_REMEDIES = {
    "wandb": "; without a network or an API key, WANDB_MODE=offline logs to the run folder and 'wandb sync' uploads "
    "later"
}


def open_tracker(config: TrainConfig, run: RunFolder, start_step: int) -> Tracker:
    """Open the trackers selected with --report-to; by default TensorBoard if it is installed.

    Raises:
        ConfigError: a selected tracker is not installed.
    """
    names = config.trackers
    if names is None:
        names = ("tensorboard",) if _is_installed("tensorboard") else ()
    for name in names:
        if not _is_installed(name):
            raise ConfigError(
                f"--report-to is {config.report_to!r}, but {name} is not installed: run 'pip install {name}', or pass "
                "--report-to none"
            )
    starts: dict[str, Callable[[], Tracker]] = {
        "tensorboard": lambda: TensorBoard(run, start_step),
        "wandb": lambda: LoggedOnce(WandB(run, config), run, "wandb"),
        "trackio": lambda: LoggedOnce(Trackio(run, config), run, "trackio"),
        "aim": lambda: Aim(run, config),
    }
    return Trackers([Guarded(_TITLES[name], _REMEDIES.get(name, ""), starts[name]) for name in names])


def _is_installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None
